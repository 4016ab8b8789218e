"""The page of a report: its conclusion, tables and layout."""
