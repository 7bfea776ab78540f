"""How far something long is, as a line now and then: also where no terminal draws a bar. Pure."""

from __future__ import annotations

PERIOD_S = 10.0
"""At least so much time lies between two lines."""
_PARTS = 20
"""At most so many lines for all of it."""


class Progress:
    """Says how much is done, and how long the rest will take at the pace so far.

    :param total: how much there is to do
    :param unit: of what, such as ``volumes``
    """

    def __init__(self, total: int, unit: str) -> None:
        self._total = total
        self._unit = unit
        self._begun: tuple[int, float] | None = None
        """How much was done when this was first asked, and when that was."""
        self._told: tuple[int, float] = (0, float("-inf"))

    def line(self, done: int, now_s: float) -> str:
        """What to say now; mostly nothing.

        :param now_s: in seconds of any monotonic clock
        """
        if self._begun is None:
            self._begun = self._told = (done, now_s)
            return ""
        told, told_s = self._told
        if now_s - told_s < PERIOD_S or (done - told) * _PARTS < self._total or done >= self._total:
            return ""
        self._told = (done, now_s)
        first, begun_s = self._begun
        left_s = (now_s - begun_s) / (done - first) * (self._total - done)
        return f"{done} of {self._total} {self._unit}, {in_time(left_s)} left"


def in_time(seconds: float) -> str:
    """A duration for people: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
