"""Encoder + volume + points -> embeddings."""
