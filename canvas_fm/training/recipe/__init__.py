"""Recipes: every setting of a training, validated."""
