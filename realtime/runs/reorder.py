"""Brings volumes into order: one that comes early waits until the gap before it fills or is given up. Pure.

Volumes of every source pass through here once they are in the journal. Time is an argument, in seconds of any
monotonic clock, so that tests run in virtual time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

MAX_EARLY_VOLUMES = 256
MAX_EARLY_BYTES = 512 * 2**20
"""Room for two volumes of the largest size that the wire format allows."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Turn(Generic[Item]):
    """The next volume of the run in order; ``item`` is None where its gap was given up."""

    index: int
    item: Item | None


@dataclass(frozen=True, slots=True)
class _Early(Generic[Item]):
    item: Item
    came_s: float
    n_bytes: int


class Reorder(Generic[Item]):
    """Hands volumes on in order, each at most once.

    :param patience_s: a gap is given up this long after the volume that follows it came, or after the last
        volume whose turn it was: one that jumped ahead waits as long as those before it still come
    :param given_up: volumes that an earlier process gave up; they get no turn
    :param max_volumes: when more volumes than this wait, or more bytes than ``max_bytes``, the gap before the
        first of them is given up at once
    """

    def __init__(
        self,
        n_volumes: int,
        patience_s: float,
        given_up: Collection[int] = (),
        *,
        max_volumes: int = MAX_EARLY_VOLUMES,
        max_bytes: int = MAX_EARLY_BYTES,
    ) -> None:
        self.n_volumes = n_volumes
        self.patience_s = patience_s
        self.next_index = 0
        self._given_up = frozenset(given_up)
        self._max_volumes = max_volumes
        self._max_bytes = max_bytes
        self._early: dict[int, _Early[Item]] = {}
        self._moved_s = -math.inf
        """When it was last a volume's turn."""

    def push(self, index: int, item: Item, now_s: float, n_bytes: int) -> list[Turn[Item]]:
        """Take a volume of ``n_bytes`` that came at ``now_s``; return those whose turn it now is.

        A volume that came twice, or after its gap was given up, changes nothing.
        """
        if index < self.next_index:
            return []
        self._early.setdefault(index, _Early(item, now_s, n_bytes))
        turns = list(self._in_order())
        if turns:
            self._moved_s = now_s
        while self._is_full:
            turns += self._give_up_before(min(self._early))
        return turns

    def expire(self, now_s: float) -> list[Turn[Item]]:
        """Give up the gaps whose time is over; return them and what waited behind them, in order."""
        turns: list[Turn[Item]] = []
        while self.deadline_s <= now_s:
            turns += self._give_up_before(min(self._early))
        return turns

    def close(self) -> list[Turn[Item]]:
        """The run is over: give up every gap up to its planned end; return all that is left, in order."""
        turns: list[Turn[Item]] = []
        while self._early:
            turns += self._give_up_before(min(self._early))
        return turns + self._give_up_before(self.n_volumes)

    def restart_clock(self, now_s: float) -> None:
        """Count every waiting volume as just arrived: its sender was away and may now fill the gap."""
        self._early = {
            index: _Early(early.item, now_s, early.n_bytes) for index, early in self._early.items()
        }

    @property
    def is_waiting(self) -> bool:
        """Whether a volume waits for its turn."""
        return bool(self._early)

    @property
    def deadline_s(self) -> float:
        """When the next gap is given up; infinite if no volume waits."""
        if not self._early:
            return math.inf
        return max(self._early[min(self._early)].came_s, self._moved_s) + self.patience_s

    @property
    def _is_full(self) -> bool:
        n_bytes = sum(early.n_bytes for early in self._early.values())
        return len(self._early) > self._max_volumes or n_bytes > self._max_bytes

    def _give_up_before(self, index: int) -> list[Turn[Item]]:
        lost = [gap for gap in range(self.next_index, index) if gap not in self._given_up]
        self.next_index = index
        return [Turn(gap, None) for gap in lost] + list(self._in_order())

    def _in_order(self) -> Iterator[Turn[Item]]:
        while self.next_index in self._early or self.next_index in self._given_up:
            index, self.next_index = self.next_index, self.next_index + 1
            early = self._early.pop(index, None)
            if early and index not in self._given_up:
                yield Turn(index, early.item)
