"""`canvas-fm info`: the full description of a path, and its summary of a dozen lines."""
