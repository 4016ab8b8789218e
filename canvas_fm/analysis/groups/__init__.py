"""Groups of brains compared region by region; a brain is one sample."""
