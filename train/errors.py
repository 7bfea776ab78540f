"""Errors of training and evaluation: one root, so that a command can catch what it can explain."""


class TrainError(Exception):
    """Anything training can name: says what was expected, what came and what to do."""
