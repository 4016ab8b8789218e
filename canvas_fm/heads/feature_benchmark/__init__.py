"""Benchmark of frozen features on held-out brains."""
