"""The served encoders, detectors and refiners."""
