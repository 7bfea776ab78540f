"""Logs to standard error, as text or as one JSON object per line for log collectors.

What peers send can be in a message. So control characters are escaped, in JSON by its own rules, and one
cause logs a few lines a second at most.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Format = Literal["text", "json"]

LINES_PER_S = 5
"""Lines that one cause may log in a second."""
_MOST_CAUSES = 1_000

# C0 and C1 controls, and what else starts a line or turns its direction.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")

_STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}


class Flood(logging.Filter):
    """Holds back lines of a cause that has logged :data:`LINES_PER_S` lines in this second.

    A cause is a logger and its format string. Its next line that passes says how many were held back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._causes: dict[tuple[str, str], _Cause] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged; it may get a note of how many were not."""
        with self._lock:
            return self._filter(record)

    def _filter(self, record: logging.LogRecord) -> bool:
        # A bare "%s" is no cause: the text is made elsewhere.
        name = (record.name, record.getMessage() if record.msg == "%s" else str(record.msg))
        if name not in self._causes and len(self._causes) >= _MOST_CAUSES:
            del self._causes[next(iter(self._causes))]
        cause = self._causes.setdefault(name, _Cause(record.created))
        if not 0 <= record.created - cause.since_s < 1:
            cause.since_s, cause.n_lines = record.created, 0
        if cause.n_lines >= LINES_PER_S:
            cause.n_held += 1
            return False
        cause.n_lines += 1
        if cause.n_held:
            record.msg = f"{record.getMessage()} ({cause.n_held} more like this were not logged)"
            record.args = None
            cause.n_held = 0
        return True


@dataclass
class _Cause:
    since_s: float
    n_lines: int = 0
    n_held: int = 0


def escaped(text: str) -> str:
    """Text without control characters: those would forge lines, or act on the terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class TextFormatter(logging.Formatter):
    """Writes one line per record, and below it the exception if there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Format time and message."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's name)
        """Format a traceback; its lines stay."""
        return "\n".join(map(escaped, super().formatException(ei).split("\n")))


class JsonFormatter(logging.Formatter):
    """Writes ``time`` (UTC), ``level``, ``logger``, ``message``, ``exception`` and fields of ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line of ASCII."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return json.dumps(fields, default=str)


def set_up(handler: logging.Handler, kind: Format) -> None:
    """Give a handler the format, and let it hold floods back."""
    handler.setFormatter(JsonFormatter() if kind == "json" else TextFormatter("%(asctime)s %(message)s"))
    handler.addFilter(Flood())


def configure(kind: Format, level: int) -> None:
    """Log everything from ``level`` up to standard error."""
    handler = logging.StreamHandler()
    set_up(handler, kind)
    logging.basicConfig(level=level, handlers=[handler])
