"""Cell detection: detector and volume to points."""
