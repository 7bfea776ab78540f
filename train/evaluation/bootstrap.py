"""Bootstrap intervals of a mean over trials. Pure.

Trials that repeat a picture are not independent, because they share how easy it is. Pictures are therefore
drawn, each with all its trials (the cluster bootstrap, Davison & Hinkley 1997, 3.8). Where every trial shows
a picture of its own, this is the same as drawing trials.

Legend: n trials, m pictures, d draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PerTrial = NDArray[np.float64]
"""[n]"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampling:
    """Bootstrap draws that all metrics share, and both models of a comparison."""

    group: NDArray[np.int64]
    """Index of the picture that each trial shows, 0 to m - 1: ``[n]``."""
    draws: NDArray[np.int64]
    """``[d, m]``"""

    def means(self, values: PerTrial) -> NDArray[np.float64]:
        """The mean over the trials of each draw, ``[d]``."""
        sums, counts = np.bincount(self.group, weights=values), np.bincount(self.group)
        means: NDArray[np.float64] = sums[self.draws].sum(axis=1) / counts[self.draws].sum(axis=1)
        return means

    def interval(self, values: PerTrial) -> tuple[float, float]:
        """95 % percentile interval of the mean."""
        low, high = np.quantile(self.means(values), [0.025, 0.975])
        return float(low), float(high)

    def standard_error(self, values: PerTrial) -> float:
        """Standard error of the mean with independent pictures; with one trial per picture, SD / sqrt(n)."""
        m = self.draws.shape[1]
        of_picture = np.bincount(self.group, weights=values - values.mean())
        return float(np.linalg.norm(of_picture) / len(values) * np.sqrt(m / (m - 1)))


def resample(pictures: NDArray[np.int64], n_draws: int, seed: int) -> Resampling:
    """Draw as many pictures as there are, with replacement, ``n_draws`` times.

    :param pictures: a number for the picture that each trial showed, ``[n]``
    """
    _, group = np.unique(pictures, return_inverse=True)
    m = int(group.max()) + 1
    draws = np.random.default_rng(seed).integers(m, size=(n_draws, m))
    return Resampling(group=group.astype(np.int64), draws=draws)
