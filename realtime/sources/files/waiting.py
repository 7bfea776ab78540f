"""When a file that is not finished is read. Pure."""

from __future__ import annotations

from dataclasses import dataclass

SETTLE_S = 0.05
"""A file that has not changed for this time is read."""
AGAIN_S = 0.25
"""An incomplete file is read again after this time."""
FileState = tuple[int, int]
"""A file's size in bytes and time of modification in ns."""


@dataclass(kw_only=True)
class Waiting:
    """A file that is not finished, and its state at the last poll."""

    state: FileState
    since_s: float
    """Time of the first poll that saw this state."""
    looked_s: float
    """Time when it was looked into last although it changes."""
    read_s: float | None = None
    """Time when it was last read and found incomplete."""
    cost_s: float = 0.0
    """How long reading it took."""
    crc: int | None = None
    """Of what was read then."""
    same_s: float = 0.0
    """Time since when the same was read."""

    def is_due(self, now_s: float) -> bool:
        """Whether it is time to read it."""
        if self.read_s is None:
            return now_s - self.since_s >= SETTLE_S
        return now_s - self.read_s >= max(AGAIN_S, 10 * self.cost_s)
