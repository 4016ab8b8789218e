"""Crops: boxes of voxels around points; their positions, and reading many of them fast."""
