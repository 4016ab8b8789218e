"""A result and the truth make numbers and figures. Imports no torch."""
