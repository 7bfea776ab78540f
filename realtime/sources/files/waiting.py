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
    came_s: float
    nth: int
    """Its place in the order in which files came."""
    read_s: float | None = None
    """Time when it was last read and found incomplete."""
    cost_s: float = 0.0
    """How long reading it took."""
    crc: int | None = None
    """Of what was read then."""
    same_s: float = float("-inf")
    """Time since when the same was read."""
    is_unnamed: bool = False
    """Whether the names of further files are needed to tell which volume it is."""
    series: str | None = None
    """That of what it holds, if only bytes are waited for that may be zeros for good."""

    def is_due(self, now_s: float) -> bool:
        """Whether it is time to read it."""
        if self.read_s is None:
            return now_s - self.since_s >= SETTLE_S
        return now_s - self.read_s >= max(AGAIN_S, 10 * self.cost_s)

    def quiet_s(self, now_s: float) -> float:
        """For how long neither the file system nor its bytes have told of a change."""
        return now_s - max(self.since_s, self.same_s)

    def holds_up(self, series: str, *, has_begun: bool) -> bool:
        """Whether files of this series that came later must not be taken before it.

        The first files of a series say where it begins, and how many slices a volume has.
        """
        return self.series == series or (self.series is None and not has_begun)
