"""Results of models on tests, trial by trial, and paired differences between models. Pure.

Models are compared by the mean of their paired difference with its 95 % bootstrap interval; repetitions of a
picture are drawn together. The intervals of two single models are of little use for this: most of their width
comes from how hard the pictures are, which both models share.

Legend: n trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from train.errors import TrainError
from train.evaluation.bootstrap import PerTrial, resample
from train.evaluation.results_table import METRICS, NotComputed, Row, Score, summarise

HEADLINES = ("Pixels", "EffNet-Lite0", "PixCorr", "SSIM")
"""Metrics that are plotted and compared, for all of which more is better: low-level and high-level
identification, and two measures of similarity. The table has all metrics."""
N_DRAWS = 2000


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """A model on a test."""

    series: str
    """Name of a line in the plot, or of a row."""
    x: float | None = None
    scores: Row
    values: dict[str, PerTrial]
    """Headline metrics by trial, ``[n]``; identification is the share of comparisons that a trial wins."""
    pictures: NDArray[np.int64]
    """A number for the picture that each trial showed, ``[n]``."""
    reference: Entry | None = None
    """The linear reference on the same windows: a lower bound on what the recordings contain."""

    @property
    def label(self) -> str:
        """The entry's name in sentences."""
        return self.series if self.x is None else f"{self.series} at {self.x:.3g}"

    def score(self, metric: str) -> Score:
        """The score of a metric that has been computed."""
        score = self.scores[metric]
        assert isinstance(score, Score), score
        return score


def entry_of(
    series: str,
    values: Mapping[str, PerTrial | NotComputed],
    pictures: NDArray[np.int64],
    x: float | None = None,
    reference: Entry | None = None,
) -> Entry:
    """An entry from the values of all metrics by trial, ``[n]``."""
    kept = {name: those for name in HEADLINES if not isinstance(those := values[name], NotComputed)}
    scores = summarise(values, pictures)
    return Entry(series=series, x=x, scores=scores, values=kept, pictures=pictures, reference=reference)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Mean difference between two entries over the same trials, with its interval; 1 is 100 points."""

    one: str
    other: str
    metric: str
    value: float
    low: float
    high: float
    n_trials: int
    n_pictures: int


def difference(one: Entry, other: Entry, metric: str, seed: int = 0) -> Difference:
    """The paired difference ``one - other`` with its 95 % interval.

    :raises TrainError: the two entries have different trials
    """
    check_same_trials((one, other))
    return contrast(one.label, other.label, metric, one.values[metric] - other.values[metric], one, seed)


def difference_of_gains(
    first: tuple[Entry, Entry], second: tuple[Entry, Entry], metric: str, seed: int = 0
) -> Difference:
    """The first pair's difference minus the second's, on the same trials.

    :raises TrainError: the four entries have different trials
    """
    check_same_trials((*first, *second))
    gains = [one.values[metric] - other.values[metric] for one, other in (first, second)]
    names = [f"gain of {one.label} over {other.label}" for one, other in (first, second)]
    return contrast(names[0], names[1], metric, gains[0] - gains[1], first[0], seed)


def contrast(one: str, other: str, metric: str, values: PerTrial, of: Entry, seed: int = 0) -> Difference:
    """The mean of ``values`` ``[n]`` over an entry's trials, with its 95 % interval."""
    resampling = resample(of.pictures, N_DRAWS, seed)
    low, high = resampling.interval(values)
    return Difference(
        one=one,
        other=other,
        metric=metric,
        value=float(values.mean()),
        low=low,
        high=high,
        n_trials=len(values),
        n_pictures=resampling.draws.shape[1],
    )


def check_same_trials(entries: Sequence[Entry]) -> None:
    """Raise TrainError when entries have different trials."""
    first = entries[0]
    for entry in entries[1:]:
        if not np.array_equal(first.pictures, entry.pictures):
            raise TrainError(
                f"expected {first.label!r} and {entry.label!r} on the same trials, got {len(first.pictures)} "
                f"and {len(entry.pictures)} trials with different pictures; compare them on one test"
            )


def chance_of(metric: str) -> float:
    """The chance level of an identification metric."""
    chance = next(each.chance for each in METRICS if each.name == metric)
    assert chance is not None, metric
    return chance
