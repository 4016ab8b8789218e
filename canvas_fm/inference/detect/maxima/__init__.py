"""Cells as local maxima of a heat map, and their scores."""
