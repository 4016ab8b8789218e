"""Linear and nearest-neighbour probes on embeddings."""
