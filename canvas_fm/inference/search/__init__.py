"""Nearest-neighbour search in embeddings."""
