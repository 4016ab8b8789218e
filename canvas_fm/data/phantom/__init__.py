"""Synthetic brains with exact truth."""
