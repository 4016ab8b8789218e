"""Pages, figures and descriptions of results."""
