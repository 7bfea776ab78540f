"""Training jobs: the base model and a subject's decoder."""
