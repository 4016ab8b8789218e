"""Batches of several requests, and threads for the rest."""
