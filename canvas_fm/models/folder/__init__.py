"""A model's folder: its configuration, weights and training volumes."""
