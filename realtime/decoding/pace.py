"""What is decoded when there is less time than volumes, and how. Pure.

Time comes in as an argument, in seconds of any monotonic clock, so that tests run in virtual time.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from realtime.bundle.spec import Sampler

MARGIN_TR = 0.1
"""Share of a TR that a decode leaves free: for what comes before and after it, and for its own variation."""
SPECIALISED_MARGIN_TR = 0.35
"""Share that a bank's specialised decodes leave free, by taking cheaper samplers.

More than one alone: several decodes' variation adds up, and what they overrun is taken from the next volume's
general frame. They are left out only when not even :data:`MARGIN_TR` would be left.
"""
_REMEMBERED = 5
"""Decodes whose slowness counts; of an odd number of them, one alone that is slow changes nothing."""


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


def left_s(received_s: float, now_s: float, tr_s: float, margin_tr: float = MARGIN_TR) -> float:
    """Time for the decode of a volume that was received at ``received_s``: until the next, less a margin."""
    return received_s + (1 - margin_tr) * tr_s - now_s
