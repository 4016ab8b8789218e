"""Cells per region of an atlas: label volumes, registrations, the tree of regions, counts and densities."""
