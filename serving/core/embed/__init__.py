"""Embeddings of crops and of points, and their projections."""
