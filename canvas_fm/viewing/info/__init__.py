"""What `canvas-fm info` says of a path: all of it, and its dozen first lines."""
