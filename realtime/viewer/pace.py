"""How often an address may ask for what is dear: some times in one go, then at a rate."""

from __future__ import annotations

import time
from collections.abc import Callable

_MOST_ADDRESSES = 256


class Pace:
    """A token bucket for each address.

    :param clock: a monotonic clock, in seconds
    """

    def __init__(
        self, burst: int, rate_per_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = burst
        self._rate_per_s = rate_per_s
        self._clock = clock
        self._left: dict[str | None, tuple[float, float]] = {}  # and when that was; the newest last

    def take(self, address: str | None) -> bool:
        """Whether this address may now; if so, it has."""
        now_s = self._clock()
        left, then_s = self._left.pop(address, (float(self._burst), now_s))
        left = min(self._burst, left + (now_s - then_s) * self._rate_per_s)
        may = left >= 1
        self._left[address] = (left - 1 if may else left), now_s
        if len(self._left) > _MOST_ADDRESSES:
            del self._left[next(iter(self._left))]
        return may
