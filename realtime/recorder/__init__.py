"""Takes volumes in: from a source into the run's journal, then the acknowledgement. Nothing else."""
