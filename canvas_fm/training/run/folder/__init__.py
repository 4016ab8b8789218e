"""What a training writes: its run folder, checkpoints, metrics."""
