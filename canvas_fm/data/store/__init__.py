"""Zarr stores: OME metadata, checksums, local folders, zips and remote addresses."""
