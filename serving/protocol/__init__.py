"""Wire formats and schemas."""
