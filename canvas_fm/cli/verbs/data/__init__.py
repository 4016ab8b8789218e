"""Verbs that read, make and convert volumes and points."""
