"""Volumes and cells in Neuroglancer: a local server with its client, or a data set for any web server."""
