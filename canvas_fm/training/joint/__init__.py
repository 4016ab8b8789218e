"""Contrastive and other joint-embedding pretraining: two augmented views of a cell."""
