"""The detector's net."""
