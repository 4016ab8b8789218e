"""What the routes call: models, batching, volumes, indexes."""
