"""Checkpoints: ours, and those that the paper's authors released."""
