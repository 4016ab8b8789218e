"""Routes by subject, each with its parameters and replies."""
