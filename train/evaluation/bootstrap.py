"""Intervals of a mean over trials, and over trainings that differ by their seed alone. Pure.

Trials that repeat a picture are not independent, because they share how easy it is. Pictures are therefore
drawn, each with all its trials (the cluster bootstrap, Davison & Hinkley 1997, 3.8). Where every trial shows
a picture of its own, this is the same as drawing trials.

Every training is tested on the same trials: seeds and pictures are crossed. To draw seeds as well would make
intervals too narrow, because a handful of seeds, drawn with replacement, spread less than seeds do: with
three seeds that matter more than pictures, a 95 % interval covers the truth in 87 of 100 cases. Each draw of
pictures is therefore shifted by the seeds' part of the error: the standard error of the mean over seeds,
times a draw of Student's t with one degree of freedom less than there are seeds. The standard error is
estimated from what the seeds' means spread beyond what follows from the pictures that were drawn (the
variance components of a two-way layout without replication, Searle, Casella & McCulloch 1992, 4.5). Of a
single training, the interval is over pictures alone.

Legend: n trials, m pictures, s seeds, d draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

PerTrial = NDArray[np.float64]
"""[n], or of several trainings [s, n]"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampling:
    """Bootstrap draws that all metrics share, and both models of a comparison."""

    group: NDArray[np.int64]
    """Index of the picture that each trial shows, 0 to m - 1: ``[n]``."""
    draws: NDArray[np.int64]
    """``[d, m]``"""
    seed: int

    def means(self, values: PerTrial) -> NDArray[np.float64]:
        """The mean over trials and trainings, of each draw, ``[d]``."""
        of_seeds = np.atleast_2d(values)
        sums, counts = self._sums(of_seeds.mean(axis=0)), np.bincount(self.group)
        means: NDArray[np.float64] = sums[self.draws].sum(axis=1) / counts[self.draws].sum(axis=1)
        error = self.error_of_seeds(values)
        if error == 0:
            return means
        # All of Student's t in as many even steps: with drawn numbers, its tails would be a matter of luck.
        ranks = np.random.default_rng([self.seed, len(of_seeds)]).permutation(len(means))
        shifted: NDArray[np.float64] = means + error * t.ppf((ranks + 0.5) / len(means), len(of_seeds) - 1)
        return shifted

    def interval(self, values: PerTrial) -> tuple[float, float]:
        """95 % percentile interval of the mean."""
        low, high = np.quantile(self.means(values), [0.025, 0.975])
        return float(low), float(high)

    def standard_error(self, values: PerTrial) -> float:
        """Standard error of the mean with independent pictures; with one trial per picture, SD / sqrt(n).

        With several trainings, that of their seeds is added.
        """
        m = self.draws.shape[1]
        of_trials = np.atleast_2d(values).mean(axis=0)
        of_pictures = np.linalg.norm(self._sums(of_trials - of_trials.mean())) / len(of_trials)
        return float(np.hypot(of_pictures * np.sqrt(m / (m - 1)), self.error_of_seeds(values)))

    def error_of_seeds(self, values: PerTrial) -> float:
        """The part of the standard error that the trainings' seeds have; 0 for a single training."""
        of_seeds = np.atleast_2d(values)
        s, n = of_seeds.shape
        if s == 1:
            return 0.0
        means, m = of_seeds.mean(axis=1), self.draws.shape[1]
        # What is neither of the seed nor of the trial makes seeds' means differ as well.
        rest = of_seeds - means[:, None] - of_seeds.mean(axis=0) + means.mean()
        by_chance = sum(np.square(self._sums(each)).sum() for each in rest) / (s - 1) / n**2 * m / (m - 1)
        return float(np.sqrt(max(0.0, means.var(ddof=1) - by_chance) / s))

    def _sums(self, values_n: NDArray[np.float64]) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = np.bincount(self.group, weights=values_n).astype(np.float64)
        return sums


def resample(pictures: NDArray[np.int64], n_draws: int, seed: int) -> Resampling:
    """Draw as many pictures as there are, with replacement, ``n_draws`` times.

    :param pictures: a number for the picture that each trial showed, ``[n]``
    """
    _, group = np.unique(pictures, return_inverse=True)
    m = int(group.max()) + 1
    draws = np.random.default_rng(seed).integers(m, size=(n_draws, m))
    return Resampling(group=group.astype(np.int64), draws=draws, seed=seed)
