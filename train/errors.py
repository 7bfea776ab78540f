"""Errors of training and evaluation: one root, so that a command can catch what it can explain."""

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
"""What libraries raise for a file of weights that is cut short, or of something else."""


class TrainError(Exception):
    """Anything training can name: says what was expected, what came and what to do."""
