"""Shards of a store that is being written: packed, written, read back."""
