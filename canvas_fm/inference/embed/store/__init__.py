"""Embeddings on disk: written resumably, read, exported."""
