"""What is censored as a spike: jerks, not drift, not a change that stays; and the past alone decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from realtime.bundle.statistics import VoxelStatistics
from realtime.preprocessing.drift import cosine_basis
from realtime.preprocessing.least_squares import StreamingFit
from realtime.preprocessing.spikes import SpikeRule, SpikeWatch, rms_sd
from realtime.preprocessing.stream import StreamingPreprocessor

from .test_preprocess import TR_S, T, preprocessing, recording

RULE = SpikeRule()


def stream_for(rows: NDArray[Any], rule: SpikeRule | None = RULE) -> StreamingPreprocessor:
    voxels = rows.shape[1]
    mask = np.ones((voxels, 1, 1), dtype=bool)
    prior = VoxelStatistics(mean=np.full(voxels, 1000, np.float32), sd=np.full(voxels, 12, np.float32))
    return StreamingPreprocessor(mask, len(rows), TR_S, preprocessing(), prior, T, rule)


def censored(rows: NDArray[Any], rule: SpikeRule | None = RULE) -> list[int]:
    stream = stream_for(rows, rule)
    return [i for i, row in enumerate(rows) if stream.push_row(i, row).status == "censored"]


@given(seed=st.integers(0, 10_000), voxels=st.sampled_from([30, 200, 1000]))
@settings(max_examples=15, deadline=None)
def test_a_quiet_run_is_left_alone(seed: int, voxels: int) -> None:
    assert censored(recording(voxels=voxels, seed=seed)) == []


@pytest.mark.parametrize("size_sd", [3, 10, 1000])
def test_jerks_are_censored_and_the_volumes_after_them_are_not(size_sd: float) -> None:
    rows = recording(voxels=500)
    pattern = np.random.default_rng(1).normal(0, 10 * size_sd, 500)
    for volume in (60, 61, 150):
        rows[volume] += pattern
    assert censored(rows) == [60, 61, 150]
    assert censored(rows, None) == []


def test_a_spike_says_what_it_is_and_the_row_before_stands_for_it() -> None:
    rows = recording(voxels=200)
    rows[100] *= 1.2
    stream, without = stream_for(rows), stream_for(rows)
    for index in range(100):
        stream.push_row(index, rows[index])
        without.push_row(index, rows[index])
    before = stream.window()
    pushed = stream.push_row(100, rows[100])
    assert (pushed.status, pushed.repaired_voxels) == ("censored", 0)
    assert pushed.reason.startswith("a spike: 10.0 SD off the run so far, ")
    after = stream.window()
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(after[:, -1], before[:, -1])
    stream.push_row(101, rows[101])
    without.push_row(101, rows[101])  # volume 100 never came
    np.testing.assert_array_equal(stream.window(), without.window())


def test_a_change_that_stays_is_taken_after_some_volumes() -> None:
    rows = recording(voxels=500)
    rows[100:] += np.random.default_rng(1).normal(0, 60, 500)
    assert censored(rows) == [100, 101, 102, 103, 104]


def test_a_run_that_becomes_restless_is_not_censored_for_ever() -> None:
    rows = recording(voxels=500)
    rows[100:] += np.random.default_rng(1).normal(0, 60, (125, 500))
    found = censored(rows)
    assert found[:5] == [100, 101, 102, 103, 104]
    assert len(found) < 20


def test_a_broken_voxel_is_not_a_jerk() -> None:
    rows = recording(voxels=500)
    rows[100, 7] = 1e30
    assert censored(rows) == []


def test_what_comes_later_changes_no_judgement() -> None:
    rows = recording(voxels=200)
    rows[80] *= 1.1
    later = rows.copy()
    later[120:] *= 3
    assert [i for i in censored(later) if i < 120] == censored(rows) == [80]


def test_nothing_is_judged_before_enough_is_known() -> None:
    watch = SpikeWatch(RULE)
    assert not any(watch.is_spike(value, value) for value in [1.0, 9.0, *[1.0] * 9, 9.0])
    assert not watch.is_spike(9.0, 1.0)
    assert not watch.is_spike(1.0, 9.0)
    assert watch.is_spike(9.0, 9.0)


def test_the_recursive_residual_is_the_forecast_error_over_its_leverage() -> None:
    rng = np.random.default_rng(0)
    basis = cosine_basis(80, TR_S, 0.01)
    rows = rng.normal(0, 1, (80, 5))
    fit = StreamingFit(basis.shape[1], 5, T)
    for index in range(60):
        fit.add(basis[index], rows[index])
    state = fit._state.copy()
    found = fit.innovation(basis[60], rows[60])
    np.testing.assert_array_equal(fit._state, state)
    past, x = basis[:60], basis[60]
    beta = np.linalg.lstsq(past, rows[:60], rcond=None)[0]
    expected = (rows[60] - x @ beta) / np.sqrt(1 + x @ np.linalg.inv(past.T @ past) @ x)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    residuals = rows[:60] - past @ beta
    np.testing.assert_allclose(fit.variance(), (residuals**2).sum(axis=0) / (60 - basis.shape[1]), rtol=1e-9)


def test_a_voxel_that_does_not_vary_does_not_count() -> None:
    assert rms_sd(np.array([3.0, 5.0]), np.array([1.0, 0.0])) == pytest.approx(np.sqrt(4.5))
    assert rms_sd(np.array([1e6, 0.0]), np.array([1.0, 1.0])) == pytest.approx(np.sqrt(50))
