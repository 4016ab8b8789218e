"""What a stored image holds and states: channel, chunks, voxel size and marker."""
