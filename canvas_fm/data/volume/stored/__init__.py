"""A stored image: channel, chunks, voxel size and marker."""
