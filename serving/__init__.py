"""The HTTP service: transport only; every number is computed by canvas_fm."""
