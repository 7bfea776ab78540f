"""Makes a bundle from a checkpoint, and a bank from several bundles."""
