"""Embedding: encoder, volume and points to embeddings."""
