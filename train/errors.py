"""Errors of training and evaluation. They have one base class, so that a command can catch and print them."""

from __future__ import annotations

from pickle import UnpicklingError
from zipfile import BadZipFile

from safetensors import SafetensorError

UNREADABLE_WEIGHTS = (
    AttributeError,
    BadZipFile,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    UnpicklingError,
    ValueError,
)
"""Exceptions that libraries raise for a file of weights that is truncated or not a file of weights."""


class TrainError(Exception):
    """An error that the user can act on: it says what was expected, what was found and what to do."""
