"""Verbs that find, refine, count, embed and search cells."""
