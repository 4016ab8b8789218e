"""Formats of points that other programs read and write."""
