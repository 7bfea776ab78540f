"""Evaluation: decodes of held-out trials, metrics and their tables."""
