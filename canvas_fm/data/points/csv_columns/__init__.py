"""Columns of a CSV: typed by their contents, numbers in plain text many rows at a time, exact both ways."""
