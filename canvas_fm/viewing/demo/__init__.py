"""The page of `canvas-fm demo`."""
