"""Corrections of planes: flat field, stripes, and a report of what they did."""
