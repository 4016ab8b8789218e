"""Detections against true centres: matching, scores, intervals, figures."""
