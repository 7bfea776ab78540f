"""Intervals over pictures: what a loop over draws gives, and scipy's where every trial shows another."""

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
