"""Files of any kind as channels of planes."""
