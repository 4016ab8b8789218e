"""Alternative inference backends: OpenVINO, int8, CUDA graphs."""
