"""What an encoder's features are worth on held-out domains."""
