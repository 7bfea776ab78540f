"""What training runs say about a subject's runs before they come. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsd import TR_S
from realtime.bundle.spec import MAX_RATIO, MIN_RATIO, DriftPrior
from realtime.bundle.statistics import VoxelStatistics
from realtime.preprocessing.drift import cosine_basis, cosine_frequencies

_BAND = 3
"""Noise is measured from the high-pass frequency to this many times it."""


@dataclass(frozen=True, kw_only=True)
class Priors:
    """The priors of a run, measured on other runs."""

    voxels: VoxelStatistics
    """Mean over runs of each voxel's mean, and root mean square over runs of its SD after drift removal."""
    drift: DriftPrior | None
    """None where runs are too short to have drifts below the high-pass frequency."""


def measure_priors(
    runs_of_rows: Iterable[NDArray[np.float32]], high_pass_hz: float, tr_s: float = TR_S
) -> Priors:
    """Measure the priors on runs of equal length.

    :param runs_of_rows: rows of the ROI in each run, ``[n, V]``
    """
    means: Any = 0.0
    variances: Any = 0.0
    powers: list[NDArray[np.float64]] = []
    n_volumes = 0
    for rows in runs_of_rows:
        n_volumes = len(rows)
        basis, _ = np.linalg.qr(cosine_basis(n_volumes, tr_s, high_pass_hz))
        series = rows.astype(np.float64)
        means = means + series.mean(axis=0)
        series -= series[0].copy()
        residuals = series - basis @ (basis.T @ series)
        variance = np.square(residuals).sum(axis=0) / (n_volumes - 1)
        variances = variances + variance
        powers.append(_powers(series[:, variance > 0], variance[variance > 0], tr_s, high_pass_hz))
    mean, sd = means / len(powers), np.sqrt(variances / len(powers))
    n_cosines = cosine_basis(n_volumes, tr_s, high_pass_hz).shape[1] - 1
    return Priors(
        voxels=VoxelStatistics(mean=mean.astype(np.float32), sd=sd.astype(np.float32)),
        drift=_drift_prior(np.mean(powers, axis=0), cosine_frequencies(n_volumes, tr_s, n_cosines)),
    )


def _powers(
    series: NDArray[np.float64], variances: NDArray[np.float64], tr_s: float, high_pass_hz: float
) -> NDArray[np.float64]:
    """Mean over voxels of the squared coefficients on cosines of norm 1, in units of a voxel's variance."""
    cosines = cosine_basis(len(series), tr_s, _BAND * high_pass_hz)[:, :-1]
    if not len(variances):
        return np.zeros(cosines.shape[1])
    powers: NDArray[np.float64] = (np.square(cosines.T @ series) / variances).mean(axis=1)
    return powers


def _drift_prior(powers: NDArray[np.float64], frequencies_hz: NDArray[np.float64]) -> DriftPrior | None:
    """The part of the power below the high-pass frequency that is more than noise.

    The noise of slow cosines is that of the cosines just above: the power of autocorrelated noise is nearly
    the same at all low frequencies, and several times that of white noise of its variance.
    """
    n_cosines = len(frequencies_hz)
    if not 0 < n_cosines < len(powers):
        return None
    noise = powers[n_cosines:].mean()
    drift = np.maximum(powers[:n_cosines] - noise, np.finfo(float).tiny)
    ratios = np.clip(noise / drift, MIN_RATIO, MAX_RATIO)
    return DriftPrior(frequencies_hz=tuple(frequencies_hz.tolist()), noise_to_drift=tuple(ratios.tolist()))
