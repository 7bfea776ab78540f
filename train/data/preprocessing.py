"""The recipe's preprocessing as it is done offline, and as the runtime does it.

Legend: V voxels of the region, T volumes of a window, K regressors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nsd import TR_S
from realtime.preprocessing.stream import causal_windows, cosine_basis
from train.data.prior import Prior
from train.recipe import Preprocessing, Recipe


def drift_basis(n_volumes: int, preprocessing: Preprocessing) -> NDArray[np.float64]:
    """What is removed from a whole run, ``[n, K]``: slow cosines, or as in the released code a line."""
    if preprocessing.drift == "linear":
        return np.stack([np.ones(n_volumes), np.linspace(-1, 1, n_volumes)], axis=1)
    return cosine_basis(n_volumes, TR_S, preprocessing.high_pass_hz)


def streamed(
    rows: NDArray[np.float32], recipe: Recipe, prior: Prior, ends: Sequence[int], n_volumes: int
) -> NDArray[np.float32]:
    """Windows ``[n, V, T]`` of one run ``[225, V]`` that end with volumes ``ends``, as the runtime sees.

    :param n_volumes: T
    """
    return causal_windows(rows, TR_S, recipe.preprocessing, prior.mean, prior.sd, n_volumes, list(ends))
