"""Parts of OME-Zarr metadata: axes, scales, and what is written."""
