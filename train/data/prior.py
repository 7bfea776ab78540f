"""The prior of each voxel's mean and SD, measured on training runs. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsd import TR_S
from realtime.bundle.statistics import VoxelStatistics
from realtime.preprocessing.stream import cosine_basis


def measure_prior(
    runs_of_rows: Iterable[NDArray[np.float32]], high_pass_hz: float, tr_s: float = TR_S
) -> VoxelStatistics:
    """Mean over runs of each voxel's mean, and root mean square over runs of its SD after drift removal.

    :param runs_of_rows: rows of the ROI in each run, ``[n, V]``
    """
    means: Any = 0.0
    variances: Any = 0.0
    n_runs = 0
    for rows in runs_of_rows:
        basis, _ = np.linalg.qr(cosine_basis(len(rows), tr_s, high_pass_hz))
        series = rows.astype(np.float64)
        means = means + series.mean(axis=0)
        series -= basis @ (basis.T @ series)
        variances = variances + np.square(series).sum(axis=0) / (len(series) - 1)
        n_runs += 1
    mean, sd = means / n_runs, np.sqrt(variances / n_runs)
    return VoxelStatistics(mean=mean.astype(np.float32), sd=sd.astype(np.float32))
