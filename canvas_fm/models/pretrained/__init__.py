"""Trained models as torch modules: the weights, their preprocessing and identity."""
