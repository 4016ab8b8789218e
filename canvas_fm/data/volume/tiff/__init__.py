"""Volumes of TIFF planes."""
