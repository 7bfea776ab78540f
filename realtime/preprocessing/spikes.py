"""Finds, as they come, volumes that a jerk of the head or a fault of the scanner has spoilt. Pure.

Two numbers of each volume are watched. Both are the RMS over the region's voxels, in SDs of the voxel (of its
residuals from the drift fit so far), because a jerk changes all voxels at once:

- its *distance* from the fit of the volumes before it, about 1 in a quiet run: the recursive residual of
  :meth:`realtime.preprocessing.least_squares.StreamingFit.innovation`;
- its *change* from the last volume that was no spike: DVARS (Power et al. 2012, "Spurious but systematic
  correlations in functional connectivity MRI networks arise from subject motion"), except that it reaches
  back over gaps and spikes, so that the return to normal is no spike.

A volume is a spike when both are far above those of the volumes before it, by their median and their median
absolute deviation (Hampel's identifier; Davies and Gather 1993, "The identification of multiple outliers").
The distance alone would stay large after a spike, because a fit without the newest volumes predicts them
less well. Only earlier volumes that are no spikes define what is usual. After several spikes in a row the
signal has changed for good: volumes are accepted again, and what is usual is learnt from then on.

``benchmarks/spikes.py`` counts on synthetic runs of 2 000 voxels with evoked responses, drift, and shared and
autocorrelated noise. Of 8 100 volumes without a jerk none is censored (fewer than 4 in 10 000 with 95 %
confidence). Of 53 jerks of 3 SD, 52 are censored, and 46 of the volumes after them, which are half as much
disturbed, and one other volume.

Legend: V voxels.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from realtime.preprocessing.least_squares import Floats

LARGEST_SD = 10.0
"""Limit of a voxel's value, so that a single broken voxel does not look like a jerk."""
REMEMBERED = 200
"""Volumes that define what is usual; bounded, so that a volume of a long run takes no more work."""
_SD_OF_MAD = 1.4826
"""SD of normal numbers over their median absolute deviation."""


class SpikeRule(msgspec.Struct, frozen=True, kw_only=True):
    """When a volume is a spike."""

    n_sd: float = 5.0
    """It is at least this many SDs (by the median absolute deviation) above the median of those before it."""
    at_least: float = 0.25
    """It is at least this share of the median above it."""
    after_volumes: int = 12
    """Volumes that must be known before any is a spike."""
    in_a_row: int = 5
    """After this many spikes in a row, the next volume is accepted."""


class SpikeWatch:
    """Judges a run's volumes in order."""

    def __init__(self, rule: SpikeRule) -> None:
        self._rule = rule
        self._distances = _Usual(rule)
        self._changes = _Usual(rule)
        self._in_a_row = 0

    def is_spike(self, distance: float, change: float) -> bool:
        """Whether the next volume is a spike; if it is not, it counts for what is usual."""
        if distance > self._distances.limit and change > self._changes.limit:
            if self._in_a_row < self._rule.in_a_row:
                self._in_a_row += 1
                return True
            self._distances, self._changes = _Usual(self._rule), _Usual(self._rule)
        self._in_a_row = 0
        self._distances.add(distance)
        self._changes.add(change)
        return False

    def state(self) -> Floats:
        """All that later judgements depend on: [1 + 2 * REMEMBERED]."""
        return np.concatenate([[self._in_a_row], self._distances.state(), self._changes.state()])

    def restore(self, state: Floats) -> None:
        """Go on from the state of another watch with the same rule."""
        self._in_a_row = int(state[0])
        self._distances, self._changes = _Usual(self._rule), _Usual(self._rule)
        self._distances.restore(state[1 : 1 + REMEMBERED])
        self._changes.restore(state[1 + REMEMBERED :])


class _Usual:
    """The usual values of one number, from volumes that are no spikes."""

    def __init__(self, rule: SpikeRule) -> None:
        self._rule = rule
        self._values: deque[float] = deque(maxlen=REMEMBERED)
        self.limit = math.inf
        """The largest value that is still usual; infinite until enough volumes are known."""

    def add(self, value: float) -> None:
        self._values.append(value)
        self._learn()

    def state(self) -> Floats:
        """Its values; NaN where there are fewer than it can remember."""
        state = np.full(REMEMBERED, np.nan)
        state[: len(self._values)] = self._values
        return state

    def restore(self, state: Floats) -> None:
        self._values.extend(state[~np.isnan(state)].tolist())
        self._learn()

    def _learn(self) -> None:
        if len(self._values) >= self._rule.after_volumes:
            values = np.array(self._values)
            median = float(np.median(values))
            sd = _SD_OF_MAD * float(np.median(np.abs(values - median)))
            self.limit = median + max(self._rule.n_sd * sd, self._rule.at_least * median)


def rms_sd(values: Floats, variance: Floats) -> float:
    """RMS over voxels of values [V] in SDs; voxels that do not vary count 0."""
    square = np.divide(values**2, variance, out=np.zeros_like(values), where=variance > 0)
    return float(np.sqrt(np.minimum(square, LARGEST_SD**2).mean()))
