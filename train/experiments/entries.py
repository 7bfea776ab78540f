"""Results of models on tests, trial by trial and seed by seed, and paired differences between models. Pure.

Models are compared by the mean of their difference, paired by trial and seed, with its 95 % interval over
both (:mod:`train.evaluation.bootstrap`); repetitions of a picture are drawn together. The intervals of two
single models are of little use for this: most of their width comes from how hard the pictures are, which both
models share.

Legend: n trials, s seeds.
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
    """Headline metrics ``[s, n]``; identification is the share of comparisons that a trial wins. A model that
    is computed, not trained, has one seed."""
    pictures: NDArray[np.int64]
    """A number for the picture that each trial showed, ``[n]``."""
    reference: Entry | None = None
    """The linear reference on the same windows: a lower bound on what the recordings contain."""
    unfinished: str | None = ""
    """Why the model has not learned what it can; empty when it has, None where that was not measured."""

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
    unfinished: str | None = "",
) -> Entry:
    """An entry from the values of all metrics by trial, ``[n]``, or by seed and trial, ``[s, n]``."""
    computed = {name: those for name in HEADLINES if not isinstance(those := values[name], NotComputed)}
    return Entry(
        series=series,
        x=x,
        scores=summarise(values, pictures),
        values={name: np.atleast_2d(those) for name, those in computed.items()},
        pictures=pictures,
        reference=reference,
        unfinished=unfinished,
    )


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Mean difference between two entries over the same trials and seeds, with its interval; 1 is 100
    points.
    """

    one: str
    other: str
    metric: str
    value: float
    low: float
    high: float
    n_trials: int
    n_pictures: int
    n_seeds: int
    share_of_seeds: float
    """Share of the mean's variance that comes from the seeds; the rest comes from the pictures."""


def difference(one: Entry, other: Entry, metric: str, seed: int = 0) -> Difference:
    """The paired difference ``one - other`` with its 95 % interval.

    :raises TrainError: the two entries have different trials, or numbers of seeds
    """
    check_same_trials((one, other))
    return contrast(one.label, other.label, metric, _gain(one, other, metric), one, seed)


def difference_of_gains(
    first: tuple[Entry, Entry], second: tuple[Entry, Entry], metric: str, seed: int = 0
) -> Difference:
    """The first pair's difference minus the second's, on the same trials.

    :raises TrainError: the four entries have different trials, or numbers of seeds
    """
    check_same_trials((*first, *second))
    gains = [_gain(one, other, metric) for one, other in (first, second)]
    names = [f"gain of {one.label} over {other.label}" for one, other in (first, second)]
    return contrast(names[0], names[1], metric, gains[0] - gains[1], first[0], seed)


def contrast(one: str, other: str, metric: str, values: PerTrial, of: Entry, seed: int = 0) -> Difference:
    """The mean of ``values`` ``[s, n]`` over an entry's trials, with its 95 % interval."""
    resampling = resample(of.pictures, N_DRAWS, seed)
    low, high = resampling.interval(values)
    error, of_seeds = resampling.standard_error(values), resampling.error_of_seeds(values)
    return Difference(
        one=one,
        other=other,
        metric=metric,
        value=float(values.mean()),
        low=low,
        high=high,
        n_trials=values.shape[1],
        n_pictures=resampling.draws.shape[1],
        n_seeds=len(values),
        share_of_seeds=(of_seeds / error) ** 2 if error else 0.0,
    )


def _gain(one: Entry, other: Entry, metric: str) -> PerTrial:
    """Differences ``[s, n]``; a model with one seed is the same at all of the other's."""
    return one.values[metric] - other.values[metric]


def check_same_trials(entries: Sequence[Entry]) -> None:
    """Raise TrainError when entries have different trials, or seeds that are not the same."""
    first = entries[0]
    n_seeds = {len(values) for entry in entries for values in entry.values.values()} - {1}
    if len(n_seeds) > 1:
        raise TrainError(
            f"expected models with as many seeds as one another, got {sorted(n_seeds)}; make all of them"
        )
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
