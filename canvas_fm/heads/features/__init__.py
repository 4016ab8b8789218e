"""Input features of heads: embeddings, detector features, candidate scores, shape."""
