"""Windows from a scanner with another TR: where they end, and what is read off between the volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from realtime.bundle.match import delay_at
from realtime.bundle.spec import Window
from realtime.preprocessing.resample import ScannerWindow

TR_S = 4 / 3
TRS_S = st.floats(TR_S / 2, 2 * TR_S)
WINDOWS = st.builds(Window, offset_volumes=st.integers(-6, 12), length_volumes=st.integers(1, 12))


def times_s(window: Window, tr_s: float, n_volumes: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """When the newest volumes of the scanner and a window's samples are, from the picture's onset."""
    delay_volumes, _ = delay_at(window, TR_S, tr_s)
    volumes = delay_volumes - np.arange(n_volumes - 1, -1, -1)
    samples = window.offset_volumes + np.arange(window.length_volumes)
    return volumes * tr_s, samples * TR_S


@given(window=WINDOWS, tr_s=TRS_S)
@settings(deadline=None)
def test_a_window_ends_as_in_training_less_than_a_volume_before_the_newest(
    window: Window, tr_s: float
) -> None:
    delay_volumes, added_s = delay_at(window, TR_S, tr_s)
    assert 0 <= added_s < tr_s
    assert delay_volumes * tr_s - added_s == pytest.approx(window.delay_volumes * TR_S, abs=1e-5)


@given(
    window=WINDOWS,
    tr_s=TRS_S,
    coefficients=st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    more=st.integers(0, 5),
)
@settings(deadline=None)
def test_every_cubic_is_given_back(window: Window, tr_s: float, coefficients: list[float], more: int) -> None:
    scanner = ScannerWindow(window, TR_S, tr_s)
    before_s, samples_s = times_s(window, tr_s, scanner.length_volumes + more)

    def course(time_s: NDArray[Any]) -> NDArray[Any]:
        return np.polynomial.polynomial.polyval(time_s / 20, coefficients)

    found = scanner.of(course(before_s)[None].astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], course(samples_s), atol=2e-4)


@given(window=WINDOWS, tr_s=TRS_S, seed=st.integers(0, 9))
@settings(deadline=None)
def test_a_window_is_the_spline_of_scipy_through_its_volumes(window: Window, tr_s: float, seed: int) -> None:
    scanner = ScannerWindow(window, TR_S, tr_s)
    z_scores = np.random.default_rng(seed).standard_normal((5, scanner.length_volumes + 3), np.float32)
    volumes_s, samples_s = times_s(window, tr_s, scanner.length_volumes)
    expected = CubicSpline(volumes_s, z_scores[:, 3:], axis=1)(samples_s)
    np.testing.assert_allclose(scanner.of(z_scores), expected, atol=1e-4)


@pytest.mark.parametrize("tr_s", [1.0, 1.5, 1.6, 2.0])
def test_the_frequencies_of_a_haemodynamic_response_are_kept(tr_s: float) -> None:
    window = Window(offset_volumes=3, length_volumes=6)
    scanner = ScannerWindow(window, TR_S, tr_s)
    before_s, samples_s = times_s(window, tr_s, scanner.length_volumes)
    phases = np.linspace(0, 2 * np.pi, 16)[:, None]
    wave = 2 * np.pi * 0.05  # of a response to a picture, most is slower
    found = scanner.of(np.sin(wave * before_s + phases).astype(np.float32))
    assert np.abs(found - np.sin(wave * samples_s + phases)).max() < 0.03


def test_at_the_decoders_tr_a_window_is_the_newest_volumes() -> None:
    window = Window(offset_volumes=3, length_volumes=6)
    z_scores = np.random.default_rng(0).standard_normal((4, 9), np.float32)
    same = ScannerWindow(window, TR_S)
    assert (same.delay_volumes, same.length_volumes) == (window.delay_volumes, 6)
    np.testing.assert_array_equal(same.of(z_scores), z_scores[:, 3:])
    assert delay_at(window, TR_S, TR_S) == (window.delay_volumes, 0.0)
    np.testing.assert_allclose(ScannerWindow(window, TR_S, TR_S).of(z_scores), z_scores[:, 3:], atol=1e-6)
