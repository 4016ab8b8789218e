"""Labelled candidates, and grouped folds."""
