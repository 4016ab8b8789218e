"""The refiner of detections: fitting, its folder, applying it."""
