"""Recipes: every setting of a training, checked."""
