"""Core of the service: models, batching, volumes, indexes."""
