"""Comparison of methods on the same labelled candidates."""
