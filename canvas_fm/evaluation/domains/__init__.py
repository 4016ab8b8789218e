"""Detection scores over many held-out brains."""
