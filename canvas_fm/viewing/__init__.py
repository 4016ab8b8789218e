"""Artefacts for eyes: descriptions, pages."""
