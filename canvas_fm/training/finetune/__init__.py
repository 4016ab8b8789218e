"""Fine-tuning of an encoder with a classifier head."""
