"""Verbs that train models and compare their settings."""
