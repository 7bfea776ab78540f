"""The training loop on DeepSpeed."""
