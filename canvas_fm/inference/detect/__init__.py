"""Detector + volume -> points."""
