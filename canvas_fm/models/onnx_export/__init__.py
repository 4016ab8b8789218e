"""Encoders and detectors as ONNX graphs, and their descriptions for bioimage.io."""
