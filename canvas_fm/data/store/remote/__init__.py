"""Zarr stores at https:// and s3:// addresses."""
