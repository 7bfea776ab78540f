"""A model's graphs, from torch modules to ONNX files."""
