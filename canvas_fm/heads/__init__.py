"""Embeddings become judgements: refinement, probes, calibration; brains never stand on both sides."""
