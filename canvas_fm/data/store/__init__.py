"""Zarr stores: OME metadata, integrity checks, local folders, zip archives, remote addresses."""
