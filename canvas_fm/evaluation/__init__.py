"""Metrics and figures of results against ground truth. Imports no torch."""
