"""Points (z, y, x and columns) and their file formats."""
