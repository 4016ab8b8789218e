"""Volumes, points, crops and synthetic brains. Imports no torch."""
