"""Predicts how long decodes take and chooses the sampler that fits the time left.

Pure: callers pass the time, in seconds of any monotonic clock, so tests run in virtual time.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from realtime.bundle.spec import Sampler

MARGIN_TR = 0.1
"""Share of a TR that a decode leaves free for the work before and after it and for its own variation."""
SPECIALISED_MARGIN_TR = 0.35
"""Share of a TR that a bank's specialised decodes leave free by choosing cheaper samplers.

It exceeds :data:`MARGIN_TR` because the variation of several decodes adds up, and an overrun delays the
general frame of the next volume. The decodes are omitted only if they would leave less than
:data:`MARGIN_TR`.
"""
_REMEMBERED = 5
"""Number of recent decodes whose median slowdown counts; odd, so that a single outlier has no effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """How long the parts of a decode take on one engine."""

    brain_s: float
    guided_s: float
    """One denoise step with both conditions."""
    unguided_s: float
    """One denoise step without the null condition."""
    vae_s: float

    def decode_s(self, sampler: Sampler) -> float:
        """Return the duration of a decode with this sampler."""
        n_unguided = sum(guidance == 1 for guidance in sampler.guidance)
        steps_s = (len(sampler.guidance) - n_unguided) * self.guided_s + n_unguided * self.unguided_s
        return self.brain_s + steps_s + self.vae_s


class Pace:
    """Predicts the duration of decodes: step times measured on the idle machine times the recent slowdown.

    All samplers share one slowdown factor, so decodes with a cheap sampler show when a better one fits.
    """

    def __init__(self, times: StepTimes) -> None:
        self.times = times
        self._factors: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def factor(self) -> float:
        """Median ratio of actual to expected time of recent decodes; 1 before the first decode."""
        return statistics.median(self._factors) if self._factors else 1.0

    def note(self, sampler: Sampler, took_s: float) -> None:
        """Record how long a decode took."""
        self._factors.append(took_s / self.times.decode_s(sampler))

    def decode_s(self, sampler: Sampler) -> float:
        """Return the expected duration of a decode with this sampler now."""
        return self.factor * self.times.decode_s(sampler)

    def choose(self, samplers: Sequence[Sampler], left_s: float) -> Sampler:
        """Return the first sampler whose decode fits, else the quickest; samplers are sorted best first."""
        fitting = (sampler for sampler in samplers if self.decode_s(sampler) <= left_s)
        return next(fitting, None) or min(samplers, key=self.decode_s)


def left_s(received_s: float, now_s: float, tr_s: float, margin_tr: float = MARGIN_TR) -> float:
    """Return the time left to decode a volume received at ``received_s``: until the next, less a margin."""
    return received_s + (1 - margin_tr) * tr_s - now_s
