"""Pretraining by joint embedding of two views."""
