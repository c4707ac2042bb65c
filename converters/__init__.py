"""ONNX in, ONNX or engine out. Knows nothing of ResNets."""
