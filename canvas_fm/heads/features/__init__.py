"""What a head looks at: embeddings, detector features, scores, shape."""
