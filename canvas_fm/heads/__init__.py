"""Classifiers on embeddings: refinement, probes, calibration; always split by brain."""
