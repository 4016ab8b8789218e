"""What you can hold: volumes, points, crops and the synthetic brain. Imports no torch."""
