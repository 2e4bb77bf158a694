"""How networks are stored: PyTorch checkpoints, MXNet parameters, ONNX."""
