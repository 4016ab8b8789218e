"""Verbs that take cells to regions, groups and distances."""
