"""Slabs of a source: read whole or in strips, corrected, with the checksums of their files."""
