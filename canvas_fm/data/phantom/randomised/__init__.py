"""Randomised phantom brains: parameter ranges, shapes, rendering, image formation."""
