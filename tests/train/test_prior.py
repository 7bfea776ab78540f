"""What is measured on training runs: the size of drifts, whatever the noise and the scale of a voxel."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from realtime.preprocessing.drift import cosine_basis
from train.data.prior import measure_priors

TR_S = 4 / 3
HIGH_PASS_HZ = 0.0078125
RATIOS = np.array([0.1, 0.3, 1.0, 0.5])
"""Of the noise's power at low frequencies to the drift's, at 1/600 Hz to 4/600 Hz."""


def runs(rho: float, n_runs: int = 24, voxels: int = 200) -> list[NDArray[np.float32]]:
    """Runs of voxels of all scales with AR(1) noise, whose power at low frequencies is 1 / (1 - rho)^2."""
    rng = np.random.default_rng(0)
    cosines = cosine_basis(225, TR_S, HIGH_PASS_HZ)[:, :-1]  # of norm 1
    scales = 10.0 ** rng.uniform(0, 3, voxels)
    made = []
    for _ in range(n_runs):
        noise = lfilter([1], [1, -rho], rng.normal(size=(300, voxels)), axis=0)[75:]
        sizes = np.sqrt(1 / RATIOS) / (1 - rho)
        drift = cosines @ (sizes[:, None] * rng.normal(size=(4, voxels)))
        made.append((1000 * scales + scales * (drift + noise)).astype(np.float32))
    return made


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_the_ratio_of_noise_to_drift_is_found(rho: float) -> None:
    found = measure_priors(runs(rho), HIGH_PASS_HZ).drift
    assert found is not None
    np.testing.assert_allclose(found.frequencies_hz, np.arange(1, 5) / 600)
    np.testing.assert_allclose(found.noise_to_drift, RATIOS, rtol=0.15)


def test_voxels_that_do_not_vary_do_not_count() -> None:
    made = runs(0.5, n_runs=3)
    with_others = [np.hstack([rows, np.zeros((225, 50), np.float32)]) for rows in made]
    expected, found = (measure_priors(each, HIGH_PASS_HZ) for each in (made, with_others))
    assert expected.drift is not None
    assert found.drift is not None
    np.testing.assert_allclose(found.drift.noise_to_drift, expected.drift.noise_to_drift)
    np.testing.assert_array_equal(found.voxels.sd[-50:], 0)
    none = measure_priors([np.ones((225, 5), np.float32)], HIGH_PASS_HZ).drift
    assert none is not None
    assert np.isfinite(none.noise_to_drift).all()


def test_noise_without_drifts_gives_a_fit_that_removes_nearly_none() -> None:
    rng = np.random.default_rng(0)
    made = [rng.normal(size=(225, 300)).astype(np.float32) for _ in range(20)]
    found = measure_priors(made, HIGH_PASS_HZ).drift
    assert found is not None
    assert min(found.noise_to_drift) > 10


def test_runs_too_short_to_drift_have_no_prior_of_it() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    assert measure_priors([rows], HIGH_PASS_HZ).drift is None
