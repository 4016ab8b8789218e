"""Other engines for the same numbers: OpenVINO, int8, CUDA graphs."""
