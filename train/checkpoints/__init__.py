"""Checkpoints of this project, and the import of those that the paper's authors released."""
