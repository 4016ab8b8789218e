"""Bytes and schemas on the wire."""
