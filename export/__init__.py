"""From a checkpoint to a bundle: LoRA merge, ONNX graphs, sampler tables, parity at every step."""
