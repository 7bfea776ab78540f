"""Volumes that a jerk of the head or a fault of the scanner spoilt, found as they come. Pure.

Two numbers of a volume are watched, both RMS over the region's voxels in SDs of the voxel (of its residuals
from the drift fit so far), because a jerk moves all voxels at once:

- its *distance* from the fit of the volumes before it, about 1 in a quiet run: the recursive residual of
  :meth:`realtime.preprocessing.least_squares.StreamingFit.innovation`;
- its *change* from the last volume that was no spike: DVARS (Power et al. 2012, "Spurious but systematic
  correlations in functional connectivity MRI networks arise from subject motion") but for gaps and spikes,
  over which it reaches back, so that the return to normal does not stand out.

A volume is a spike when both are far above those of the volumes before it, by their median and their median
absolute deviation (Hampel's identifier; Davies and Gather 1993, "The identification of multiple outliers").
The distance alone would go on after a spike, because a fit that has not seen the newest volumes lies farther
off. Only the past decides, and a spike itself does not count. Where volume after volume is a spike, that is
how the run is now: it is taken, and what is usual is learnt anew.

Counted by ``benchmarks/spikes.py`` on synthetic runs of 2 000 voxels with evoked responses, drift, and shared
and autocorrelated noise: of 8 100 volumes without a jerk none is censored (with 95 % confidence fewer than 4
in 10 000); of 53 jerks of 3 SD 52 are, of the volumes after them, which are half as much disturbed, 46, and
one other volume.

Legend: V voxels.
"""

from __future__ import annotations

import math
from collections import deque

import msgspec
import numpy as np

from realtime.preprocessing.least_squares import Floats

LARGEST_SD = 10.0
"""A voxel counts no more than this, so that a single broken one does not look like a jerk."""
REMEMBERED = 200
"""Volumes that tell what is usual; with a bound, a volume is the same work in a long run."""
_SD_OF_MAD = 1.4826
"""SD of normal numbers over their median absolute deviation."""


class SpikeRule(msgspec.Struct, frozen=True, kw_only=True):
    """From when on a volume is a spike."""

    n_sd: float = 5.0
    """So many SDs (by the median absolute deviation) above the median of the volumes before it,"""
    at_least: float = 0.25
    """and at least by this share above it."""
    after_volumes: int = 12
    """That have to be known first."""
    in_a_row: int = 5
    """More than this are taken for how the run is now."""


class SpikeWatch:
    """Judges a run's volumes in order."""

    def __init__(self, rule: SpikeRule) -> None:
        self._rule = rule
        self._distances = _Usual(rule)
        self._changes = _Usual(rule)
        self._in_a_row = 0

    def is_spike(self, distance: float, change: float) -> bool:
        """Whether the next volume is one; where it is not, it counts among the usual."""
        if distance > self._distances.limit and change > self._changes.limit:
            if self._in_a_row < self._rule.in_a_row:
                self._in_a_row += 1
                return True
            self._distances, self._changes = _Usual(self._rule), _Usual(self._rule)
        self._in_a_row = 0
        self._distances.add(distance)
        self._changes.add(change)
        return False


class _Usual:
    """What one number is in volumes that are no spikes."""

    def __init__(self, rule: SpikeRule) -> None:
        self._rule = rule
        self._values: deque[float] = deque(maxlen=REMEMBERED)
        self.limit = math.inf
        """The largest value that is not far above the usual; infinite while that is not known."""

    def add(self, value: float) -> None:
        self._values.append(value)
        if len(self._values) >= self._rule.after_volumes:
            values = np.array(self._values)
            median = float(np.median(values))
            sd = _SD_OF_MAD * float(np.median(np.abs(values - median)))
            self.limit = median + max(self._rule.n_sd * sd, self._rule.at_least * median)


def rms_sd(values: Floats, variance: Floats) -> float:
    """RMS over voxels of values [V] in SDs; voxels that do not vary count 0."""
    square = np.divide(values**2, variance, out=np.zeros_like(values), where=variance > 0)
    return float(np.sqrt(np.minimum(square, LARGEST_SD**2).mean()))
