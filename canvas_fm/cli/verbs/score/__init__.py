"""Verbs that score detections and features against labels."""
