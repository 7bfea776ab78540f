"""What is decoded when there is less time than volumes, how, and in which order volumes are taken. Pure.

Time comes in as an argument, in seconds of any monotonic clock, so that tests run in virtual time.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from realtime.bundle import Sampler

MARGIN_TR = 0.1
"""Share of a TR that a decode leaves free: for what comes before and after it, and for its own variation."""
_REMEMBERED = 5
"""Decodes whose slowness counts; of an odd number of them, one alone that is slow changes nothing."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """How long the parts of a decode take on one engine."""

    brain_s: float
    guided_s: float
    """One step of a sampler with both conditions."""
    unguided_s: float
    """One with the condition alone."""
    vae_s: float

    def decode_s(self, sampler: Sampler) -> float:
        """How long a decode with this sampler takes."""
        n_unguided = sum(guidance == 1 for guidance in sampler.guidance)
        steps_s = (len(sampler.guidance) - n_unguided) * self.guided_s + n_unguided * self.unguided_s
        return self.brain_s + steps_s + self.vae_s


class Pace:
    """How long decodes take now: what was measured on the idle machine, times how much slower it is lately.

    One factor for all samplers, so that decodes with a cheap one tell when there is time for a better one.
    """

    def __init__(self, times: StepTimes) -> None:
        self.times = times
        self._factors: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def factor(self) -> float:
        """Time of the last decodes over what was expected of them; 1 before the first."""
        return statistics.median(self._factors) if self._factors else 1.0

    def note(self, sampler: Sampler, took_s: float) -> None:
        """Learn how long a decode took."""
        self._factors.append(took_s / self.times.decode_s(sampler))

    def decode_s(self, sampler: Sampler) -> float:
        """How long a decode with this sampler would take now."""
        return self.factor * self.times.decode_s(sampler)

    def choose(self, samplers: Sequence[Sampler], left_s: float) -> Sampler:
        """The first of the samplers, which are sorted best first, whose decode fits; else the quickest."""
        fitting = (sampler for sampler in samplers if self.decode_s(sampler) <= left_s)
        return next(fitting, None) or min(samplers, key=self.decode_s)


def left_s(received_s: float, now_s: float, tr_s: float) -> float:
    """Time for the decode of a volume that was received at ``received_s``: until the next, less a margin."""
    return received_s + (1 - MARGIN_TR) * tr_s - now_s


@dataclass(frozen=True, slots=True)
class Turn(Generic[Item]):
    """The next volume of the run in order; ``item`` is None where its gap was given up."""

    index: int
    item: Item | None


class Reorder(Generic[Item]):
    """Hands volumes on in order; what comes early waits until the gap before it fills or is given up.

    :param patience_s: a gap is given up this long after the first volume behind it came.
    :param given_up: volumes that an earlier process gave up: they are passed over without a turn.
    """

    def __init__(self, n_volumes: int, patience_s: float, given_up: Collection[int] = ()) -> None:
        self.n_volumes = n_volumes
        self.patience_s = patience_s
        self.next_index = 0
        self._given_up = frozenset(given_up)
        self._early: dict[int, tuple[Item, float]] = {}

    def push(self, index: int, item: Item, now_s: float) -> list[Turn[Item]]:
        """Take a volume that came at ``now_s``; return those whose turn it now is.

        A volume whose turn is over, because it came twice or after its gap was given up, changes nothing.
        """
        if index < self.next_index:
            return []
        self._early.setdefault(index, (item, now_s))
        return list(self._in_order())

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
        """Let every waiting volume count as just come: its sender was away and may now fill the gap."""
        self._early = {index: (item, now_s) for index, (item, _) in self._early.items()}

    @property
    def deadline_s(self) -> float:
        """When the next gap is given up; infinite where nothing waits."""
        return min((came_s for _, came_s in self._early.values()), default=math.inf) + self.patience_s

    def _give_up_before(self, index: int) -> list[Turn[Item]]:
        lost = [gap for gap in range(self.next_index, index) if gap not in self._given_up]
        self.next_index = index
        return [Turn(gap, None) for gap in lost] + list(self._in_order())

    def _in_order(self) -> Iterator[Turn[Item]]:
        while self.next_index in self._early or self.next_index in self._given_up:
            index, self.next_index = self.next_index, self.next_index + 1
            early = self._early.pop(index, None)
            if early and index not in self._given_up:
                yield Turn(index, early[0])


class NewestWins(Generic[Item]):
    """One decode at a time; while it runs only the newest window waits."""

    def __init__(self) -> None:
        self._waiting: Item | None = None
        self._busy = False

    def offer(self, item: Item) -> Item | None:
        """Put a window forward; return the older one that it replaces and that is never decoded."""
        replaced, self._waiting = self._waiting, item
        return replaced

    def take(self) -> Item | None:
        """The window to decode now; None while a decode runs or nothing waits."""
        if self._busy or self._waiting is None:
            return None
        item, self._waiting, self._busy = self._waiting, None, True
        return item

    def done(self) -> None:
        """The decode that :meth:`take` began is over."""
        self._busy = False

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._busy and self._waiting is None
