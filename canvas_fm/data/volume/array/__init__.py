"""A volume as an array, and an array as a volume."""
