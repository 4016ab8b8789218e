"""Cells grown from detections: a label volume and a table of their morphology."""
