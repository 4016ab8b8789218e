"""Pretraining of the 3D masked autoencoder."""
