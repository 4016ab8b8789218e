"""Points (z, y, x and columns) and every file format that holds them."""
