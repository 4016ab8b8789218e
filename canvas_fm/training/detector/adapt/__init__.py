"""Adapting a detector to a new brain by a few labelled cells."""
