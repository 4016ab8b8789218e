"""Counts of cells with intervals."""
