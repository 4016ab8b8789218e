"""Boxes of voxels around points: where they lie, and reading many of them fast."""
