"""What every request passes: keys, limits, bodies, decompression."""
