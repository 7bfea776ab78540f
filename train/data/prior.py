"""The prior of each voxel's mean and SD, measured on training runs. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsd import TR_S
from realtime.preprocessing.stream import cosine_basis


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Mean of each voxel over training runs, and its SD over time after drift removal; float32 ``[V]``."""

    mean: NDArray[np.float32]
    sd: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file with the arrays ``mean`` and ``sd``."""
        np.savez(path, mean=self.mean, sd=self.sd)

    @staticmethod
    def load(path: Path) -> Prior:
        """Read a file that :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return Prior(mean=arrays["mean"], sd=arrays["sd"])


def measure_prior(runs_of_rows: Iterable[NDArray[np.float32]], high_pass_hz: float) -> Prior:
    """Mean over runs of each voxel's mean, and root mean square over runs of its SD after drift removal.

    :param runs_of_rows: rows of the ROI in each run, ``[n, V]``
    """
    means: Any = 0.0
    variances: Any = 0.0
    n_runs = 0
    for rows in runs_of_rows:
        basis, _ = np.linalg.qr(cosine_basis(len(rows), TR_S, high_pass_hz))
        series = rows.astype(np.float64)
        means = means + series.mean(axis=0)
        series -= basis @ (basis.T @ series)
        variances = variances + np.square(series).sum(axis=0) / (len(series) - 1)
        n_runs += 1
    mean, sd = means / n_runs, np.sqrt(variances / n_runs)
    return Prior(mean=mean.astype(np.float32), sd=sd.astype(np.float32))
