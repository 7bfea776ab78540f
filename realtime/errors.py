"""The one exception tree of the runtime.

RealtimeError
├── WireError        a message that cannot be taken
├── BundleError      a bundle that cannot be trusted or read
├── PreprocessError  volumes and settings that do not fit each other
├── EngineError      a graph that cannot be loaded or run
├── RecordError      a run folder that cannot be written or continued
└── ServeError       the runtime cannot start or go on: a port in use, a bad option
"""

from __future__ import annotations


class RealtimeError(Exception):
    """Anything the runtime can name: says what was expected, what came and what to do."""


class WireError(RealtimeError):
    """A message from outside that cannot be taken; ``code`` is a short word for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class BundleError(RealtimeError):
    """A bundle that is missing, damaged, too new, or does not fit the run."""


class PreprocessError(RealtimeError):
    """Volumes, ROI or settings that do not fit each other."""


class EngineError(RealtimeError):
    """A graph that cannot be loaded or run here."""


class RecordError(RealtimeError):
    """A run folder that cannot be written or continued."""


class ServeError(RealtimeError):
    """The runtime cannot start or go on."""
