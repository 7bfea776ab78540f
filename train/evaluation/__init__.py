"""Evaluation: decodes of held-out trials, metrics, and tables of results."""
