"""Conversion of any image file that is read into OME-Zarr."""
