"""What makes ONNX files of a model."""
