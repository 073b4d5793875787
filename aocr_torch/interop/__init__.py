"""Bridges to other formats: TensorFlow checkpoints, ONNX."""
