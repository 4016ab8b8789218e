"""Workflows that combine rooms: phantoms drawn, detectors trained and scored by one command."""
