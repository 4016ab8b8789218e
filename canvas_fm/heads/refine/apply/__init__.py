"""Applying a refiner to candidates."""
