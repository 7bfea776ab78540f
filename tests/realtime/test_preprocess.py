"""The oracle is ``nilearn.signal.clean``: the stream equals the batch at every volume."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nilearn.signal import clean, create_cosine_drift
from numpy.typing import NDArray
from scipy.linalg import qr

from realtime.bundle.spec import Preprocessing
from realtime.bundle.statistics import VoxelStatistics
from realtime.errors import PreprocessError
from realtime.preprocessing.drift import cosine_basis
from realtime.preprocessing.spikes import SpikeRule
from realtime.preprocessing.stream import (
    Pushed,
    StreamingPreprocessor,
    causal_windows,
    z_scored,
)

pytestmark = pytest.mark.filterwarnings("ignore:When confounds are provided")

TR_S = 4 / 3
T = 6
RTOL, ATOL = 1e-5, 1e-6
"""``ATOL`` in SD: a z-score of 0.01 is not asked to hold more digits than one of 0.1."""


def recording(n: int = 225, voxels: int = 200, dtype: str = "float64", seed: int = 0) -> NDArray[Any]:
    """Voxels around 1000 with their own offset, trend, slow wave and noise of SD 10; [n, V]."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, n)[:, None]
    rows = 1000 + rng.normal(0, 50, voxels) + time * rng.normal(0, 30, voxels)
    rows = rows + 20 * np.cos(3 * time) * rng.normal(size=voxels) + rng.normal(0, 10, (n, voxels))
    return (np.rint(rows) if dtype == "int16" else rows).astype(dtype)


def preprocessing(high_pass_hz: float = 0.008, warmup: int = 30, prior: float = 10.0) -> Preprocessing:
    return Preprocessing(high_pass_hz=high_pass_hz, warmup_volumes=warmup, prior_volumes=prior)


def prior_of(n_voxels: int, mean: float = 990, sd: float = 12) -> VoxelStatistics:
    return VoxelStatistics(mean=np.full(n_voxels, mean, np.float32), sd=np.full(n_voxels, sd, np.float32))


def stream_for(
    rows: NDArray[Any], settings: Preprocessing, planned: int | None = None, window_volumes: int = T
) -> StreamingPreprocessor:
    voxels = rows.shape[1]
    return StreamingPreprocessor(
        np.ones((voxels, 1, 1), dtype=bool),
        planned or len(rows),
        TR_S,
        settings,
        prior_of(voxels),
        window_volumes,
    )


def batch(rows: NDArray[Any], basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nilearn on the rows that are there, with their rows of the planned run's basis; in float64."""
    z: NDArray[np.float64] = clean(
        rows.astype(np.float64),
        confounds=basis,
        detrend=False,
        standardize="zscore_sample",
        standardize_confounds=False,
    )
    return z


@given(n=st.integers(2, 400), tr_s=st.floats(0.3, 3), high_pass_hz=st.floats(0.001, 0.05))
def test_the_basis_is_nilearns(n: int, tr_s: float, high_pass_hz: float) -> None:
    expected = create_cosine_drift(high_pass_hz, np.arange(n) * tr_s)
    np.testing.assert_allclose(cosine_basis(n, tr_s, high_pass_hz), expected, rtol=0, atol=1e-13)


def test_the_basis_is_nilearns_where_rounding_decides() -> None:
    for n in range(75, 2000, 75):  # where 2 n 0.01 4/3 is a whole number
        assert cosine_basis(n, TR_S, 0.01).shape == create_cosine_drift(0.01, np.arange(n) * TR_S).shape


def test_the_basis_of_one_volume_is_a_constant() -> None:
    np.testing.assert_array_equal(cosine_basis(1, TR_S, 0.008), [[1.0]])


@pytest.mark.parametrize("bad", [(0, 1.0, 0.01), (10, 0.0, 0.01), (10, 1.0, float("nan"))])
def test_a_basis_of_nothing_is_refused(bad: tuple[int, float, float]) -> None:
    with pytest.raises(PreprocessError, match="expected at least one volume"):
        cosine_basis(*bad)


@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
@pytest.mark.parametrize("high_pass_hz", [0.008, 0.01])
def test_at_the_last_volume_the_stream_equals_the_whole_run(dtype: str, high_pass_hz: float) -> None:
    rows = recording(dtype=dtype)
    stream = stream_for(rows, preprocessing(high_pass_hz))
    for index, row in enumerate(rows):
        stream.push_row(index, row)
    window = stream.window()
    expected = clean(
        rows.astype(np.float64),
        filter="cosine",
        high_pass=high_pass_hz,
        t_r=TR_S,
        detrend=False,
        standardize="zscore_sample",
    )
    assert window is not None
    np.testing.assert_allclose(window.T, expected[-T:], rtol=RTOL, atol=ATOL)
    whole_run = z_scored(rows, cosine_basis(len(rows), TR_S, high_pass_hz))
    np.testing.assert_allclose(whole_run, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize(("high_pass_hz", "from_n"), [(0.008, 16), (0.01, 40)])
def test_at_every_volume_the_stream_equals_the_batch(dtype: str, high_pass_hz: float, from_n: int) -> None:
    rows = recording(dtype=dtype)
    basis = create_cosine_drift(high_pass_hz, np.arange(len(rows)) * TR_S)
    stream = stream_for(rows, preprocessing(high_pass_hz))
    for index, row in enumerate(rows):
        stream.push_row(index, row)
        n = index + 1
        if n >= from_n:
            window = stream.window()
            assert window is not None
            np.testing.assert_allclose(window.T, batch(rows[:n], basis[:n])[-T:], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("high_pass_hz", [0.008, 0.01])
def test_while_cosines_look_alike_the_stream_equals_the_batch_as_far_as_float64_tells(
    high_pass_hz: float,
) -> None:
    rows = recording()
    basis = create_cosine_drift(high_pass_hz, np.arange(len(rows)) * TR_S)
    stream = stream_for(rows, preprocessing(high_pass_hz))
    for index in range(40):
        stream.push_row(index, rows[index])
        n = index + 1
        if n < basis.shape[1] + 3:
            continue
        pivots = np.abs(np.diag(qr(basis[:n] / np.abs(basis[:n]).max(axis=0), mode="r", pivoting=True)[0]))
        tolerance = 100 * np.finfo(float).eps
        if ((pivots > tolerance / 2) & (pivots < tolerance * 2)).any():
            continue  # whether this cosine is in is a matter of the last bit
        told_apart = pivots[pivots > tolerance]
        window = stream.window()
        assert window is not None
        deviation = np.abs(window.T - batch(rows[:n], basis[:n])[-T:]).max()
        assert deviation < 1e-6 + 2e-16 * 3 * told_apart[0] / told_apart[-1]


def test_many_cosines_that_cannot_be_told_apart_yet_do_not_eat_the_signal() -> None:
    rows = recording(n=1200, voxels=50)
    basis = create_cosine_drift(0.01, np.arange(1200) * TR_S)
    stream = stream_for(rows[:200], preprocessing(0.01), planned=1200)
    for index in range(200):
        stream.push_row(index, rows[index])
    window = stream.window()
    assert basis.shape[1] == 33
    assert window is not None
    np.testing.assert_allclose(window.T, batch(rows[:200], basis[:200])[-T:], rtol=0, atol=0.05)


def test_the_stream_is_the_same_at_any_offset() -> None:
    rows = recording(n=120, voxels=20)
    far = stream_for(rows, preprocessing())
    near = stream_for(rows, preprocessing())
    for index, row in enumerate(rows):
        far.push_row(index, row + 1e6)
        near.push_row(index, row - 1000)
    a, b = far.window(), near.window()
    assert a is not None
    assert b is not None
    np.testing.assert_allclose(a, b, rtol=RTOL, atol=ATOL)


@settings(max_examples=25)
@given(
    fates=st.lists(
        st.sampled_from(["good", "good", "good", "censored", "missing"]), min_size=60, max_size=90
    ),
    seed=st.integers(0, 1000),
)
def test_what_is_censored_or_missing_is_left_out_of_the_fit(fates: list[str], seed: int) -> None:
    rows = recording(n=len(fates), voxels=12, seed=seed)
    basis = create_cosine_drift(0.008, np.arange(len(rows)) * TR_S)
    stream = stream_for(rows, preprocessing())
    good = [index for index, fate in enumerate(fates) if fate == "good"]
    stands_for = []  # per volume, the good one that stands for it
    for index, fate in enumerate(fates):
        before = [other for other in good if other <= index] or good[:1]
        stands_for.append(before[-1])
        if fate == "good":
            stream.push_row(index, rows[index])
        elif fate == "censored":
            assert stream.push_row(index, np.full(12, np.nan)).status == "censored"
    last = max((i for i, fate in enumerate(fates) if fate != "missing"), default=-1)
    if len(good) < 30 or last < max(good):
        return
    expected = dict(zip(good, batch(rows[good], basis[good]), strict=True))
    window = stream.window()
    assert window is not None
    in_window = [expected[stands_for[index]] for index in range(last - T + 1, last + 1)]
    np.testing.assert_allclose(window.T, in_window, rtol=RTOL, atol=2e-6)


def test_until_there_is_a_fit_the_prior_helps() -> None:
    rows = recording(n=225, voxels=30)
    stream = stream_for(rows, preprocessing(0.008, prior=10.0))
    for index in range(5 + 2):
        stream.push_row(index, rows[index])
        seen, n, k = rows[: index + 1], index + 1, 10.0
        mean = (seen.sum(axis=0) + k * 990) / (n + k)
        variance = (((seen - mean) ** 2).sum(axis=0) + k * 12.0**2) / (n + k)
        window = stream.window()
        if n < T:
            assert window is None
        else:
            assert window is not None
            expected = (rows[n - T : n] - mean) / np.sqrt(variance)
            np.testing.assert_allclose(window.T, expected, rtol=1e-6, atol=1e-7)


def test_without_a_prior_the_first_volume_says_nothing() -> None:
    rows = recording(n=225, voxels=30)
    stream = stream_for(rows, preprocessing(prior=0.0), window_volumes=1)
    stream.push_row(0, rows[0])
    np.testing.assert_array_equal(stream.window(), np.zeros((30, 1)))
    stream.push_row(1, rows[1])
    window = stream.window()
    assert window is not None
    np.testing.assert_allclose(np.abs(window), 1.0, rtol=1e-6)


def test_trust_comes_with_the_warm_up_and_enough_volumes() -> None:
    rows = recording(voxels=5)
    stream = stream_for(rows, preprocessing(warmup=30))
    states = [stream.push_row(index, row).status for index, row in enumerate(rows)]
    assert states == ["warming"] * 29 + ["trusted"] * 196
    short = stream_for(rows, preprocessing(warmup=1))
    states = [short.push_row(index, row).status for index, row in enumerate(rows)]
    assert states == ["warming"] * 7 + ["trusted"] * 218  # 5 regressors and 3
    gappy = stream_for(rows, preprocessing(warmup=1))
    states = [gappy.push_row(index, rows[index]).status for index in range(100, 110)]
    assert states == ["warming"] * 7 + ["trusted"] * 3


def test_a_few_bad_voxels_are_repaired_with_their_last_good_value() -> None:
    rows = recording(n=80, voxels=200)
    stream, repaired = stream_for(rows, preprocessing()), stream_for(rows, preprocessing())
    holes = {40: [3, 7], 41: [3], 79: [199]}
    mended = rows.copy()
    for index, row in enumerate(rows):
        damaged = row.copy()
        bad = holes.get(index, [])
        damaged[bad] = [np.nan, np.inf][: len(bad)]
        mended[index, bad] = mended[index - 1, bad]
        assert stream.push_row(index, damaged).repaired_voxels == len(bad)
        repaired.push_row(index, mended[index])
    np.testing.assert_array_equal(stream.window(), repaired.window())


def test_the_first_volume_is_repaired_with_the_prior() -> None:
    rows = recording(voxels=200)
    stream, expected = (stream_for(rows, preprocessing(), window_volumes=1) for _ in range(2))
    damaged, mended = rows[0].copy(), rows[0].copy()
    damaged[11], mended[11] = np.nan, 990.0
    stream.push_row(0, damaged)
    expected.push_row(0, mended)
    np.testing.assert_array_equal(stream.window(), expected.window())


@pytest.mark.parametrize(
    ("n_bad", "status"), [(0, "trusted"), (2, "trusted"), (3, "censored"), (200, "censored")]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_more_than_one_percent_bad_voxels_censor_a_volume(n_bad: int, status: str, value: float) -> None:
    rows = recording(n=60, voxels=200)
    stream = stream_for(rows, preprocessing())
    for index, row in enumerate(rows[:-1]):
        stream.push_row(index, row)
    before = stream.window()
    assert before is not None
    damaged = rows[-1].copy()
    damaged[:n_bad] = value
    last = stream.push_row(59, damaged)
    assert last.status == status
    assert last.repaired_voxels == (n_bad if status == "trusted" else 0)
    window = stream.window()
    assert window is not None
    assert np.isfinite(window).all()
    if status == "censored":
        np.testing.assert_array_equal(window[:, -1], before[:, -1])


def test_a_run_that_begins_censored_goes_on() -> None:
    rows = recording(voxels=20)
    stream = stream_for(rows, preprocessing())
    first = stream.push_row(0, np.full(20, np.nan))
    assert first.status == "censored"
    for index in range(1, T):
        assert stream.window() is None
        stream.push_row(index, rows[index])
    window = stream.window()
    assert window is not None
    np.testing.assert_array_equal(window[:, 0], window[:, 1])  # volume 1 stands for the lost volume 0


def test_voxels_that_do_not_vary_are_zero() -> None:
    rows = recording(n=100, voxels=4)
    rows[:, 1] = 1234.5
    rows[:, 2] = 0
    rows[:, 3] = 1000 + 7 * cosine_basis(100, TR_S, 0.008)[:, 0]  # nothing but drift
    stream = stream_for(rows, preprocessing())
    for index, row in enumerate(rows):
        stream.push_row(index, row)
        window = stream.window()
        if index > 10:
            assert window is not None
            np.testing.assert_array_equal(window[1:3], 0)
    assert window is not None
    assert np.abs(window[0]).max() > 0.1
    np.testing.assert_array_equal(window[3], 0)
    np.testing.assert_array_equal(z_scored(rows, cosine_basis(len(rows), TR_S, 0.008))[:, 1:], 0)


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u2", "<f4", "<f8"])
def test_a_volume_is_masked_in_c_order_whatever_its_layout(dtype: str) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((5, 6, 7)) < 0.3
    volume = rng.integers(0, 1000, mask.shape).astype(dtype)
    voxels = int(mask.sum())
    prior = prior_of(voxels, 500, 100)

    def first_z(array: NDArray[Any]) -> NDArray[np.float32]:
        stream = StreamingPreprocessor(mask, 225, TR_S, preprocessing(), prior, window_volumes=1)
        stream.push(0, array)
        window = stream.window()
        assert window is not None
        return window[:, 0]

    x, y, z = np.nonzero(mask)
    mean = (volume[x, y, z] + 5000.0) / 11
    expected = (volume[x, y, z] - mean) / np.sqrt(((volume[x, y, z] - mean) ** 2 + 10 * 100.0**2) / 11)
    frozen = volume.copy()
    frozen.setflags(write=False)
    for layout in (frozen, np.asfortranarray(volume), np.repeat(volume, 2, axis=1)[:, ::2]):
        np.testing.assert_allclose(first_z(layout), expected, rtol=1e-6)


def test_inputs_are_not_changed_and_outputs_are_not_shared() -> None:
    rows = recording(n=50, voxels=200)
    rows[30, 5] = np.nan
    before = rows.copy()
    stream = stream_for(rows, preprocessing())
    windows = []
    for index, row in enumerate(rows):
        stream.push_row(index, row)
        windows.append(stream.window())
    np.testing.assert_array_equal(rows, before)
    kept = windows[20]
    assert kept is not None
    copy = kept.copy()
    kept[:] = 1e9
    again = stream.window()
    np.testing.assert_array_equal(again, windows[-1])
    assert not np.array_equal(copy, kept)


def test_causal_windows_are_what_the_runtime_feeds() -> None:
    rows = recording(n=60, voxels=20, dtype="int16")
    prior = prior_of(20)
    stream = stream_for(rows, preprocessing())
    fed = {}
    for index, row in enumerate(rows):
        stream.push_row(index, row)
        fed[index] = stream.window()
    ends = [50, 5, 8, 59, 8]
    windows = causal_windows(rows, TR_S, preprocessing(), prior, T, ends)
    assert windows.dtype == np.float32
    assert windows.shape == (5, 20, T)
    for window, end in zip(windows, ends, strict=True):
        np.testing.assert_array_equal(window, fed[end])
    assert causal_windows(rows, TR_S, preprocessing(), prior, T, []).shape == (0, 20, T)


@pytest.mark.parametrize("end", [4, 60, -1])
def test_causal_windows_that_do_not_fit_the_run_are_refused(end: int) -> None:
    rows = recording(n=60, voxels=3)
    with pytest.raises(PreprocessError, match="expected window ends from 5 to 59"):
        causal_windows(rows, TR_S, preprocessing(), prior_of(3, 0, 1), T, [10, end])


@pytest.mark.parametrize(("index", "again"), [(4, 4), (4, 3), (4, -1), (4, 225)])
def test_volumes_come_once_in_order_within_the_plan(index: int, again: int) -> None:
    rows = recording(voxels=3)
    stream = stream_for(rows, preprocessing())
    stream.push_row(index, rows[index])
    with pytest.raises(PreprocessError, match=f"expected a volume index from 5 to 224, got {again}"):
        stream.push_row(again, rows[0])
    stream.push_row(5, rows[5])


def test_shapes_that_do_not_fit_are_refused() -> None:
    rows = recording(voxels=3)
    stream = stream_for(rows, preprocessing())
    with pytest.raises(PreprocessError, match=r"expected a volume of shape \(3, 1, 1\), got \(3, 1\)"):
        stream.push(0, rows[0].reshape(3, 1))
    with pytest.raises(PreprocessError, match="expected 3 voxels"):
        stream.push_row(0, rows[0, :2])
    mask = np.ones((3, 1, 1), dtype=bool)
    ones = np.ones(3, np.float32)
    for mean in (ones[:2], np.array([1, np.nan, 1], np.float32)):
        prior = VoxelStatistics(mean=mean, sd=ones)
        with pytest.raises(
            PreprocessError, match="expected a finite prior for each of the region's 3 voxels"
        ):
            StreamingPreprocessor(mask, 225, TR_S, preprocessing(), prior, window_volumes=T)


def test_a_recorded_run_must_be_finite_and_long_enough() -> None:
    rows = recording(n=50, voxels=3)
    rows[3, 1] = np.inf
    with pytest.raises(PreprocessError, match="finite"):
        z_scored(rows, cosine_basis(len(rows), TR_S, 0.008))
    with pytest.raises(PreprocessError, match="expected more than 3 volumes"):
        z_scored(rows[:3], cosine_basis(3, TR_S, 0.3))


def test_no_warning_is_raised_on_the_way() -> None:
    rows = recording(n=30, voxels=4)
    rows[:, 0] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = stream_for(rows, preprocessing(prior=0.0))
        for index, row in enumerate(rows):
            stream.push_row(index, row)
            window = stream.window()
            assert (window is None) == (index < T - 1)
            assert window is None or np.isfinite(window).all()


def test_from_the_state_after_any_volume_a_stream_goes_on_bit_for_bit() -> None:
    rows = recording(n=60, voxels=200)
    rows[25, 3] = rows[26, 3] = rows[27, 4] = np.nan
    rows[35] = np.nan
    rows[[30, 31, 40]] += np.random.default_rng(1).normal(0, 100, 200)
    volumes = [index for index in range(60) if index not in (2, 33, 34, 45)]

    def stream() -> StreamingPreprocessor:
        mask = np.ones((200, 1, 1), dtype=bool)
        return StreamingPreprocessor(
            mask, 60, TR_S, preprocessing(), prior_of(200), T, SpikeRule(after_volumes=6)
        )

    def push(one: StreamingPreprocessor, index: int) -> tuple[Pushed, bytes | None]:
        pushed, window = one.push_row(index, rows[index]), one.window()
        return pushed, None if window is None else window.tobytes()

    whole, states, expected = stream(), [], []
    for index in volumes:
        states.append(whole.state())
        expected.append(push(whole, index))
    reasons = {pushed.reason[:7] for pushed, _ in expected if pushed.status == "censored"}
    assert reasons == {"a spike", "too man"}
    assert sum(pushed.repaired_voxels for pushed, _ in expected) == 3
    for place, state in enumerate(states):
        again = stream()
        again.restore(state)
        assert [push(again, index) for index in volumes[place:]] == expected[place:]


def test_a_state_of_another_region_is_refused_and_changes_nothing() -> None:
    one, other = (stream_for(recording(voxels=voxels), preprocessing()) for voxels in (200, 201))
    one.push_row(0, recording()[0])
    before = one.state()
    with pytest.raises(PreprocessError, match="of this region and run"):
        one.restore(other.state())
    with pytest.raises(PreprocessError, match="finite numbers"):
        one.restore({**before, "factor": np.full_like(before["factor"], np.inf)})
    assert {name: array.tobytes() for name, array in one.state().items()} == {
        name: array.tobytes() for name, array in before.items()
    }


def test_quality_is_that_of_the_published_formulas() -> None:
    rows = recording(n=80, voxels=150)
    basis = cosine_basis(80, TR_S, 0.008)
    stream = stream_for(rows, preprocessing())
    pushed = [stream.push_row(index, row) for index, row in enumerate(rows)]
    # DVARS as in nipype.algorithms.confounds.compute_dvars, without its scaling to a median of 1000.
    dvars = np.sqrt(np.square(np.diff(rows, axis=0)).mean(axis=1))
    assert pushed[0].dvars is None
    assert [each.dvars for each in pushed[1:]] == pytest.approx(dvars.tolist(), rel=1e-6)
    assert [each.global_signal for each in pushed] == pytest.approx(rows.mean(axis=1).tolist(), rel=1e-6)
    for n in (20, 50, 80):
        # As nipype's TSNR, which keeps the mean and divides by the SD with ddof 0, but without cosines.
        centred = rows[:n] - rows[:n].mean(axis=0)
        residuals = clean(centred, confounds=basis[:n], detrend=False, standardize=None)
        tsnr = np.median(rows[:n].mean(axis=0) / residuals.std(axis=0))
        assert pushed[n - 1].tsnr == pytest.approx(tsnr, rel=1e-6)


def test_the_change_to_a_volume_before_that_is_missing_or_broken_is_not_known() -> None:
    rows = recording(n=12, voxels=20)
    stream = stream_for(rows, preprocessing(), planned=40)
    broken = np.full(20, np.nan)
    come = (0, 1, 3, 4, 6, 7, 8)
    pushed = {index: stream.push_row(index, broken if index == 6 else rows[index]) for index in come}
    assert {index for index, each in pushed.items() if each.dvars is None} == {0, 3, 6, 7}
    assert pushed[6].global_signal is None


def test_a_volume_that_the_caller_censors_is_left_out_and_its_change_is_known() -> None:
    rows = recording(n=60, voxels=30)
    rows[40] += 500
    censoring, missing = (stream_for(rows, preprocessing()) for _ in range(2))
    for index, row in enumerate(rows):
        pushed = censoring.push_row(index, row, censored="the head moved" if index == 40 else "")
        if index == 40:
            assert (pushed.status, pushed.reason) == ("censored", "the head moved")
            assert pushed.dvars == pytest.approx(np.sqrt(np.square(rows[40] - rows[39]).mean()))
        else:
            missing.push_row(index, row)
    np.testing.assert_array_equal(censoring.window(), missing.window())


def test_confounds_of_each_volume_are_fitted_with_the_drifts_as_in_the_batch() -> None:
    rows = recording(n=60, voxels=40)
    motion = np.random.default_rng(5).normal(0, 1, (60, 6)).cumsum(axis=0) / 5
    rows = rows + motion @ np.random.default_rng(6).normal(0, 30, (6, 40))
    stream = StreamingPreprocessor(
        np.ones((40, 1, 1), bool), 60, TR_S, preprocessing(), prior_of(40), T, n_confounds=6
    )
    basis = cosine_basis(60, TR_S, 0.008)
    for index, row in enumerate(rows):
        stream.push_row(index, row, confounds=motion[index])
        if index in (30, 45, 59):
            n = index + 1
            expected = batch(rows[:n], np.hstack([motion[:n], basis[:n]]))[-T:].T
            np.testing.assert_allclose(np.asarray(stream.window()), expected, rtol=RTOL, atol=ATOL)
    with pytest.raises(PreprocessError, match="expected 6 confounds, got 0"):
        StreamingPreprocessor(
            np.ones((40, 1, 1), bool), 60, TR_S, preprocessing(), prior_of(40), T, n_confounds=6
        ).push_row(0, rows[0])
