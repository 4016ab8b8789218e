"""Levels of a pyramid, and other voxel sizes."""
