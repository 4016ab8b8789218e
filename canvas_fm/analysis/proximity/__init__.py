"""How close two populations lie: nearest-neighbour distances, cross-K, L and G in 3D, null models."""
