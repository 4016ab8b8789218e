"""Metrics of classification, reconstruction, segmentation and separability."""
