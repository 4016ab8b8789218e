"""Inference: a model on a volume gives points, embeddings, search results."""
