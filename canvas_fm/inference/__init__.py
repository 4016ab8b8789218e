"""A model and a volume make a result."""
