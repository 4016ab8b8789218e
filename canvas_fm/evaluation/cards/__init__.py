"""Model cards, and the reports that their numbers come from."""
