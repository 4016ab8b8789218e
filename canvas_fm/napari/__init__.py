"""The plugin for napari: open volumes and cells, detect, refine, look for like cells, review."""
