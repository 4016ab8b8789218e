"""Sweeps: a grid of pretrainings, run resumably, and what they gave side by side."""
