"""Cross-marker tables of scores, as text, CSV and a page."""
