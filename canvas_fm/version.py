"""The package's version, importable without importing the package's public names."""

__version__ = "0.2.0"
