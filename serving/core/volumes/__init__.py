"""The volumes that a service serves."""
