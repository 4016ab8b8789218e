"""Fitting a refiner."""
