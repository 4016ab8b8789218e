"""Background jobs: store, runner, results."""
