"""Neuroglancer's precomputed format: sharded files, point annotations and image pyramids."""
