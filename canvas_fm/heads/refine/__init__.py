"""The true/false-positive refiner: fitting, its folder, applying it."""
