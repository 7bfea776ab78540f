"""Intervals over pictures and seeds: against a loop over draws, scipy, and simulations whose truth is
known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy.stats import bootstrap, sem

from train.evaluation.bootstrap import resample

Array = NDArray[Any]
PICTURES = arrays.arrays(np.int64, st.integers(2, 30), elements=st.integers(0, 8)).filter(
    lambda pictures: len(set(pictures.tolist())) > 1
)


def values_of(pictures: Array, seed: int) -> Array:
    return np.random.default_rng(seed).normal(0.1, 1, len(pictures))


@settings(deadline=None)
@given(pictures=PICTURES, seed=st.integers(0, 99))
def test_a_draw_is_of_pictures_with_all_their_trials(pictures: Array, seed: int) -> None:
    values = values_of(pictures, seed)
    shown = sorted(set(pictures.tolist()))
    rng = np.random.default_rng(seed)
    expected = []
    for draw in rng.integers(len(shown), size=(50, len(shown))).tolist():
        trials = [value for place in draw for value in values[pictures == shown[place]]]
        expected.append(sum(trials) / len(trials))
    found = resample(pictures, 50, seed)
    np.testing.assert_allclose(found.means(values), expected, atol=1e-12)
    assert found.interval(values) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))


def test_where_every_trial_shows_another_it_is_the_ordinary_bootstrap() -> None:
    values = values_of(np.arange(60), 1)
    found = resample(np.arange(60), 20_000, 0)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    low, high = theirs.confidence_interval
    assert found.interval(values) == pytest.approx((low, high), abs=0.05 * (high - low))
    assert found.standard_error(values) == pytest.approx(sem(values))


def test_trials_of_one_picture_are_not_independent() -> None:
    values = values_of(np.arange(60), 1)
    once, thrice = resample(np.arange(60), 2000, 0), resample(np.arange(60).repeat(3), 2000, 0)
    repeated = values.repeat(3)
    assert thrice.interval(repeated) == pytest.approx(once.interval(values))
    assert thrice.standard_error(repeated) == pytest.approx(once.standard_error(values))
    low, high = resample(np.arange(180), 2000, 0).interval(repeated)
    assert high - low < 0.7 * (once.interval(values)[1] - once.interval(values)[0])


def test_a_single_training_is_one_of_many() -> None:
    values = values_of(np.arange(40), 1)
    found = resample(np.arange(40), 500, 0)
    assert found.interval(values[None]) == found.interval(values)
    assert found.standard_error(values[None]) == found.standard_error(values)
    assert found.error_of_seeds(values) == 0
    alike = np.tile(values, (3, 1))
    assert found.interval(alike) == pytest.approx(found.interval(values))


@pytest.mark.parametrize("of_seeds", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("of_both", [0.3, 1.0])
@pytest.mark.parametrize("trials_a_picture", [1, 2])
def test_an_interval_covers_the_truth_whatever_seeds_and_pictures_contribute(
    of_seeds: float, of_both: float, trials_a_picture: int
) -> None:
    """Pictures contribute an SD of 0.12 to the mean. The truth is 0."""
    rng, n_pictures, n_seeds, n_runs = np.random.default_rng(5), 70, 3, 400
    pictures = np.arange(n_pictures).repeat(trials_a_picture)
    found = resample(pictures, 400, 0)
    covered, errors = 0, []
    for _ in range(n_runs):
        seeds = rng.normal(0, of_seeds, (n_seeds, 1))
        values = (
            seeds + rng.normal(0, 1, n_pictures)[pictures] + rng.normal(0, of_both, (n_seeds, len(pictures)))
        )
        low, high = found.interval(values)
        covered += low < 0 < high
        errors.append(found.standard_error(values))
    assert covered / n_runs == pytest.approx(0.95, abs=0.03)
    true = np.sqrt(of_seeds**2 / n_seeds + 1 / n_pictures + of_both**2 / n_seeds / len(pictures))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(true, rel=0.1)
