"""Errors of the simulator."""


class SimError(Exception):
    """Base of all expected errors; the message says what was expected, what was found and what to do."""
