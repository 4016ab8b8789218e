"""The dock widgets: detect, refine, cells like this, review."""
