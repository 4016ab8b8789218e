"""Parts shared by all trainings: optimizer, loop, checkpoints, ranks, tracking."""
