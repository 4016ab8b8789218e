"""The HTTP service: translation only, every number comes from canvas_fm."""
