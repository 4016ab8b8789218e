"""Access log, metrics, tracing."""
