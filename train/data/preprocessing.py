"""The recipe's preprocessing as it is done offline, and as the runtime does it.

Legend: V voxels of the region, T volumes of a window, K regressors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nsd import TR_S
from realtime.bundle import spec as bundle_spec
from realtime.bundle.statistics import VoxelStatistics
from realtime.preprocessing.stream import causal_windows, cosine_basis
from train.recipe import Preprocessing, Recipe


def streaming_settings(preprocessing: Preprocessing) -> bundle_spec.Preprocessing:
    """The runtime's preprocessing settings, from the recipe's."""
    return bundle_spec.Preprocessing(
        high_pass_hz=preprocessing.high_pass_hz,
        warmup_volumes=preprocessing.warmup_volumes,
        prior_volumes=preprocessing.prior_volumes,
    )


def drift_basis(n_volumes: int, preprocessing: Preprocessing) -> NDArray[np.float64]:
    """What is removed from a whole run, ``[n, K]``: slow cosines, or as in the released code a line."""
    if preprocessing.drift == "linear":
        return np.stack([np.ones(n_volumes), np.linspace(-1, 1, n_volumes)], axis=1)
    return cosine_basis(n_volumes, TR_S, preprocessing.high_pass_hz)


def streamed(
    rows: NDArray[np.float32], recipe: Recipe, prior: VoxelStatistics, ends: Sequence[int], n_volumes: int
) -> NDArray[np.float32]:
    """Windows ``[n, V, T]`` of one run ``[225, V]`` that end with volumes ``ends``, as the runtime sees.

    :param n_volumes: T
    """
    settings = streaming_settings(recipe.preprocessing)
    return causal_windows(rows, TR_S, settings, prior, n_volumes, list(ends))
