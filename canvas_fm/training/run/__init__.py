"""What every training shares: optimizer, loop, checkpoints, ranks, tracking."""
