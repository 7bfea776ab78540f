"""TensorRT plans: graphs compiled for one GPU, their precision and their parity."""
