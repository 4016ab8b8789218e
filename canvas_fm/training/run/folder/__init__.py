"""Output of a training: its run folder, checkpoints, metrics."""
