"""One channel of one brain: opening, intensity window, resampling, writing."""
