"""The prior of the drifts: the stream equals the batch ridge fit, and comes nearer to the whole run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from nilearn.signal import clean
from numpy.typing import NDArray

from realtime.bundle.spec import DriftPrior, Preprocessing
from realtime.bundle.statistics import VoxelStatistics
from realtime.preprocessing.drift import cosine_basis, shrinkage
from realtime.preprocessing.stream import StreamingPreprocessor, causal_windows, z_scored

TR_S = 4 / 3
T = 6
RTOL, ATOL = 1e-5, 1e-6
HIGH_PASS_HZ = 0.0078125
SETTINGS = Preprocessing(high_pass_hz=HIGH_PASS_HZ, warmup_volumes=30, prior_volumes=10.0)
PRIOR = DriftPrior(frequencies_hz=(1 / 600, 2 / 600, 3 / 600, 4 / 600), noise_to_drift=(0.2, 0.3, 0.7, 1.0))


def recording(n: int = 225, voxels: int = 40, seed: int = 0, drift: float = 1.0) -> NDArray[np.float64]:
    """Voxels around 1000 with white noise of SD 10 and drifts as large as ``PRIOR`` says, times ``drift``."""
    rng = np.random.default_rng(seed)
    basis = cosine_basis(n, TR_S, HIGH_PASS_HZ)[:, :4]  # of norm 1
    sizes = 10 / np.sqrt(PRIOR.noise_to_drift[: basis.shape[1]])
    courses = basis @ (sizes[:, None] * rng.normal(size=(basis.shape[1], voxels)))
    rows: NDArray[np.float64] = 1000 + drift * courses + rng.normal(0, 10, (n, voxels))
    return rows


def stream_for(
    n_volumes: int,
    voxels: int,
    prior: DriftPrior | None = PRIOR,
    n_confounds: int = 0,
    high_pass_hz: float = HIGH_PASS_HZ,
) -> StreamingPreprocessor:
    ones = np.ones(voxels, np.float32)
    return StreamingPreprocessor(
        np.ones((voxels, 1, 1), dtype=bool),
        n_volumes,
        TR_S,
        Preprocessing(high_pass_hz=high_pass_hz, warmup_volumes=30, prior_volumes=10.0),
        VoxelStatistics(mean=1000 * ones, sd=10 * ones),
        T,
        n_confounds=n_confounds,
        drift_prior=prior,
    )


def batch(
    rows: NDArray[np.float64],
    cosines: NDArray[np.float64],
    whole: NDArray[np.float64],
    ratios: NDArray[np.float64],
    confounds: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Z-scores of the rows that are there, by a ridge fit on their cosines.

    The fit is least squares on the rows and, for each cosine, one row that asks its coefficient to be 0.

    :param whole: the cosines of the whole planned run
    """
    n_cosines = len(ratios)
    regressors = np.hstack([cosines, confounds, np.ones((len(rows), 1))])
    asks = np.zeros((n_cosines, regressors.shape[1]))
    asks[:, :n_cosines] = np.diag(np.sqrt(ratios * np.square(whole).sum(axis=0)))
    centre = rows.mean(axis=0)
    to_fit = np.vstack([rows - centre, np.zeros((n_cosines, rows.shape[1]))])
    coefficients = scipy.linalg.lstsq(np.vstack([regressors, asks]), to_fit)[0]
    coefficients[:n_cosines] *= 1 + ratios[:, None]
    residuals = rows - centre - regressors @ coefficients
    z: NDArray[np.float64] = residuals / np.sqrt(np.square(residuals).sum(axis=0) / (len(rows) - 1))
    return z


@settings(max_examples=25)
@given(
    data=st.data(),
    n_volumes=st.integers(70, 260),
    ratios=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6),
    high_pass_hz=st.floats(0.006, 0.02),
    n_confounds=st.sampled_from([0, 0, 2]),
    seed=st.integers(0, 1000),
)
def test_at_every_volume_the_stream_equals_the_batch_ridge_fit(
    data: st.DataObject,
    n_volumes: int,
    ratios: list[float],
    high_pass_hz: float,
    n_confounds: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    rows = recording(n_volumes, 5, seed)
    confounds = rng.normal(size=(n_volumes, n_confounds)).cumsum(axis=0)
    confounds /= np.abs(confounds).max(axis=0, initial=1.0)
    whole = cosine_basis(n_volumes, TR_S, high_pass_hz)[:, :-1]
    frequencies = np.arange(1, whole.shape[1] + 1) / (2 * n_volumes * TR_S)
    at = np.linspace(0.5, 1.5, len(ratios)) * frequencies.mean()
    prior = DriftPrior(frequencies_hz=tuple(at.tolist()), noise_to_drift=tuple(ratios))
    ratio = np.exp(np.interp(np.log(frequencies), np.log(at), np.log(ratios)))
    lost = set(data.draw(st.lists(st.integers(1, n_volumes - 1), max_size=10)))
    stream = stream_for(n_volumes, 5, prior, n_confounds, high_pass_hz)
    good: list[int] = []
    for index in range(n_volumes):
        if index in lost:
            continue
        stream.push_row(index, rows[index], confounds=confounds[index])
        good.append(index)
        window = stream.window()
        if len(good) < whole.shape[1] + n_confounds + 4 or index % 7:
            continue
        z = batch(rows[good], whole[good], whole, ratio, confounds[good])
        expected = [
            z[sum(other <= max(0, age) for other in good) - 1] for age in range(index - T + 1, index + 1)
        ]
        assert window is not None
        np.testing.assert_allclose(window.T, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.filterwarnings("ignore:When confounds are provided")
@pytest.mark.parametrize("prior", [None, PRIOR])
def test_at_the_last_volume_the_stream_equals_the_free_fit_of_the_whole_run(prior: DriftPrior | None) -> None:
    rows = recording()
    windows = causal_windows(
        rows, TR_S, SETTINGS, VoxelStatistics(mean=rows[0], sd=rows[0]), T, [len(rows) - 1], prior
    )
    whole = clean(
        rows,
        filter="cosine",
        high_pass=HIGH_PASS_HZ,
        t_r=TR_S,
        detrend=False,
        standardize="zscore_sample",
    )
    np.testing.assert_allclose(windows[0].T, whole[-T:], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("drift", [0.5, 1.0, 2.0])
def test_with_a_prior_windows_come_nearer_to_those_of_the_whole_run(drift: float) -> None:
    """Also where drifts are half or twice as large as in training runs."""
    rows = recording(voxels=200, drift=drift)
    ends = list(range(29, 215, 5))
    whole = z_scored(rows, cosine_basis(len(rows), TR_S, HIGH_PASS_HZ))
    expected = np.stack([whole[end - T + 1 : end + 1].T for end in ends])
    statistics = VoxelStatistics(mean=rows[0].astype(np.float32), sd=np.full(200, 10, np.float32))
    off = [
        np.square(causal_windows(rows, TR_S, SETTINGS, statistics, T, ends, prior) - expected).mean()
        for prior in (PRIOR, None)
    ]
    assert off[0] < 0.5 * off[1]


def test_without_a_prior_every_bit_is_that_of_the_free_fit() -> None:
    """The arithmetic of releases before there was a prior, operation by operation, on the same state."""
    rows = recording()
    stream, with_prior = stream_for(len(rows), 40, None), stream_for(len(rows), 40)
    k = cosine_basis(len(rows), TR_S, HIGH_PASS_HZ).shape[1]
    for index, row in enumerate(rows):
        stream.push_row(index, row)
        with_prior.push_row(index, row)
        state = stream.state()
        assert {name: array.tobytes() for name, array in with_prior.state().items() if name != "place"} == {
            name: array.tobytes() for name, array in state.items() if name != "place"
        }
        if index < 60:  # until then, cosines may be too much alike
            continue
        window = stream.window()
        slots = (state["place"][1] - np.arange(T - 1, -1, -1)) % T
        residuals = state["recent"][slots] - state["factor"][:, k + slots].T @ state["factor"][:, k + T :]
        residuals *= np.sqrt(np.divide(index, state["rss"]))
        np.testing.assert_array_equal(window, residuals.T.astype(np.float32))


def test_a_volume_takes_the_same_work_and_memory_however_long_the_run_is() -> None:
    rows = recording()
    stream = stream_for(len(rows), 40)
    sizes = []
    for index, row in enumerate(rows):
        stream.push_row(index, row)
        stream.window()
        sizes.append(sum(array.nbytes for array in stream.state().values()))
    assert set(sizes) == {sizes[0]}


def test_the_level_of_a_run_has_no_prior() -> None:
    rows = recording(n=120)
    here, there = stream_for(len(rows), 40), stream_for(len(rows), 40)
    for index, row in enumerate(rows):
        here.push_row(index, row)
        there.push_row(index, row + 1e6)
    a, b = here.window(), there.window()
    assert a is not None
    assert b is not None
    np.testing.assert_allclose(a, b, rtol=RTOL, atol=ATOL)


def test_a_head_that_does_not_move_changes_nothing() -> None:
    rows = recording(n=120)
    still, without = stream_for(len(rows), 40, n_confounds=6), stream_for(len(rows), 40)
    for index, row in enumerate(rows):
        still.push_row(index, row, confounds=np.zeros(6).tolist())
        without.push_row(index, row)
        if index > 15:
            np.testing.assert_allclose(still.window(), without.window(), rtol=RTOL, atol=ATOL)  # type: ignore[arg-type]


def test_from_the_state_after_any_volume_a_stream_with_a_prior_goes_on_bit_for_bit() -> None:
    rows = recording(n=60)
    rows[20] = np.nan
    whole = stream_for(60, 40)
    states, expected = [], []
    for index, row in enumerate(rows):
        states.append(whole.state())
        whole.push_row(index, row)
        expected.append(_bytes(whole))
    for place, state in enumerate(states):
        again = stream_for(60, 40)
        again.restore(state)
        for index in range(place, 60):
            again.push_row(index, rows[index])
            assert _bytes(again) == expected[index]


def _bytes(stream: StreamingPreprocessor) -> bytes | None:
    window = stream.window()
    return None if window is None else window.tobytes()


def test_the_penalties_are_those_of_the_runs_own_cosines() -> None:
    def ratios(n_volumes: int, tr_s: float = TR_S) -> Any:
        basis = cosine_basis(n_volumes, tr_s, HIGH_PASS_HZ)
        found = shrinkage(basis, tr_s, PRIOR, n_confounds=3)
        np.testing.assert_array_equal(found.penalties[:3], 0)
        assert found.penalties[-1] == 0  # the constant
        np.testing.assert_allclose(
            found.penalties[3:], (found.rescale - 1)[3:] * np.square(basis).sum(axis=0)
        )
        return found.rescale[3:-1] - 1

    np.testing.assert_allclose(ratios(225), PRIOR.noise_to_drift)
    np.testing.assert_allclose(ratios(450)[1::2], PRIOR.noise_to_drift)  # twice as long: every other one
    np.testing.assert_allclose(ratios(300, 1.0), PRIOR.noise_to_drift)  # as long, in shorter volumes
    longer = ratios(450)
    assert longer[0] == pytest.approx(PRIOR.noise_to_drift[0])
    assert (np.diff(longer) >= 0).all()
    assert ratios(40).size == 0  # too short to drift
