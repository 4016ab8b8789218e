"""Fine-tuning of an encoder under a classifier."""
