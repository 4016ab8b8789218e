"""Routes of the review's page."""
