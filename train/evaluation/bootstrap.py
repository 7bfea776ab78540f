"""Intervals of a mean over trials, by resampling what is independent: the pictures that were shown. Pure.

Trials that show one picture again share what makes it easy or hard, so a picture is drawn with all its trials
(the cluster bootstrap, Davison & Hinkley 1997, 3.8). Where every trial shows another, trials are drawn.

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
    """The same draws for every metric, and for both of two models that are compared."""

    group: NDArray[np.int64]
    """Which picture a trial shows, 0 to m - 1: ``[n]``."""
    draws: NDArray[np.int64]
    """``[d, m]``"""

    def means(self, values: PerTrial) -> NDArray[np.float64]:
        """Mean over the trials of each draw, ``[d]``."""
        sums, counts = np.bincount(self.group, weights=values), np.bincount(self.group)
        means: NDArray[np.float64] = sums[self.draws].sum(axis=1) / counts[self.draws].sum(axis=1)
        return means

    def interval(self, values: PerTrial) -> tuple[float, float]:
        """95 % percentile interval of the mean."""
        low, high = np.quantile(self.means(values), [0.025, 0.975])
        return float(low), float(high)

    def standard_error(self, values: PerTrial) -> float:
        """Of the mean, its pictures independent; of one trial a picture, SD / sqrt(n)."""
        m = self.draws.shape[1]
        of_picture = np.bincount(self.group, weights=values - values.mean())
        return float(np.linalg.norm(of_picture) / len(values) * np.sqrt(m / (m - 1)))


def resample(pictures: NDArray[np.int64], n_draws: int, seed: int) -> Resampling:
    """Draws of as many pictures as there are.

    :param pictures: what each trial showed, ``[n]``, by any number
    """
    _, group = np.unique(pictures, return_inverse=True)
    m = int(group.max()) + 1
    draws = np.random.default_rng(seed).integers(m, size=(n_draws, m))
    return Resampling(group=group.astype(np.int64), draws=draws)
