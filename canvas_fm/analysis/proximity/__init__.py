"""Proximity of two populations: nearest-neighbour distances, cross-K, L and G in 3D, null models."""
