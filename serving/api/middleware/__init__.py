"""Middleware of every request: keys, limits, bodies, decompression."""
