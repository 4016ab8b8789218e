"""Data sets in the layout of the CANVAS paper: brains of planes with annotated regions."""
