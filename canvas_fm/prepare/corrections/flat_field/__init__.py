"""Flat-field correction: shading measured, or estimated from the planes by our own fit or by BaSiCPy."""
