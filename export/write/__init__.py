"""Write a model as ONNX files."""
