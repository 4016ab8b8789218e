"""Synthetic brains with exact ground truth."""
