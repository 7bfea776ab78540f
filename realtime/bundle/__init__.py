"""The bundle: all that the runtime knows about a subject and a model."""
