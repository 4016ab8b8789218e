"""Routes over HTTP: translation only."""
