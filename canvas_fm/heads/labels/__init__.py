"""Candidates with labels, and grouped folds."""
