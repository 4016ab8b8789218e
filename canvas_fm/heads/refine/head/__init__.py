"""The head of a refiner, and the calibration of its probabilities."""
