"""Where a bundle comes from: the checkpoint that it reads, and the hashes that link it to the bundle."""
