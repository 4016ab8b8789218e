"""Workflows over several subpackages: count, study, held-out evaluation of detectors, review."""
