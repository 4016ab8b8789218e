"""Detection tile by tile: halos, resumption, workers."""
