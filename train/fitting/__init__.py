"""Training jobs: the base model, and the decoder of one or more subjects."""
