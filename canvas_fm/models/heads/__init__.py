"""Networks of heads on crops and embeddings."""
