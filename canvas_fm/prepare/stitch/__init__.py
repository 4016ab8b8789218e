"""Overlapping tiles of z-stacks put together as one volume."""
