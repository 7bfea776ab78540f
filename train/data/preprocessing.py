"""The recipe's preprocessing: offline over whole runs, and causal as in the runtime.

Legend: V voxels of the ROI, T volumes of a window, K regressors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from realtime.preprocessing.drift import cosine_basis
from realtime.preprocessing.stream import causal_windows
from train.data.prior import Priors
from train.recipe import Preprocessing, Recipe


def drift_basis(n_volumes: int, preprocessing: Preprocessing) -> NDArray[np.float64]:
    """Drift regressors of a whole run, ``[n, K]``: slow cosines or, as in the released code, a line."""
    if preprocessing.drift == "linear":
        return np.stack([np.ones(n_volumes), np.linspace(-1, 1, n_volumes)], axis=1)
    return cosine_basis(n_volumes, preprocessing.tr_s, preprocessing.high_pass_hz)


def streamed(
    rows: NDArray[np.float32], recipe: Recipe, priors: Priors, ends: Sequence[int], n_volumes: int
) -> NDArray[np.float32]:
    """Windows ``[n, V, T]`` of one run ``[225, V]``, preprocessed as in the runtime.

    :param ends: the last volume of each window
    :param n_volumes: T
    """
    settings = recipe.preprocessing
    return causal_windows(rows, settings.tr_s, settings, priors.voxels, n_volumes, list(ends), priors.drift)
