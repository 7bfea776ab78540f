"""Errors of the simulator: one root, so that a command can catch what it can explain."""


class SimError(Exception):
    """Anything the simulator can name: says what was expected, what came and what to do."""
