"""The exceptions of the runtime.

RealtimeError
├── WireError        a message is refused
├── BundleError      a bundle cannot be read or trusted
├── PreprocessError  volumes and settings are inconsistent
├── RegistrationError  a volume shows no head, or not where the reference's is
├── EngineError      a graph cannot be loaded or run
├── RecordError      a run folder cannot be written or continued
│   └── RecordGoneError    it was deleted, replaced or cut while it was written
└── ServeError       the runtime cannot start or continue: a port in use, an invalid option
"""

from __future__ import annotations


class RealtimeError(Exception):
    """Base of all expected errors; the message says what was expected, what was found and what to do."""


class WireError(RealtimeError):
    """A message from outside is refused; ``code`` is a short word for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class BundleError(RealtimeError):
    """A bundle is missing, damaged, too new, or does not match the run."""


class PreprocessError(RealtimeError):
    """Volumes, ROI or settings are inconsistent."""


class RegistrationError(RealtimeError):
    """How the head lies in a volume cannot be found; no position is better than a wrong one."""


class EngineError(RealtimeError):
    """A graph cannot be loaded or run here."""


class RecordError(RealtimeError):
    """A run folder cannot be written or continued."""


class RecordGoneError(RecordError):
    """A run folder was deleted, replaced or cut by another program while it was written."""


class ServeError(RealtimeError):
    """The runtime cannot start or continue."""
