"""A bundle's origin: reads the checkpoint, and records the hashes that link it to the bundle."""
