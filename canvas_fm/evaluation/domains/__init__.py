"""How detectors do on many brains that they did not see."""
