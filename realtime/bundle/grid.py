"""Compares the grids of two images."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike

TOLERANCE_MM = 0.1


def same_grid(first: ArrayLike, second: ArrayLike, shape: tuple[int, int, int]) -> bool:
    """Whether two affines [4, 4] map every voxel of a grid to the same position within ``TOLERANCE_MM``."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, edge) for edge in shape))])
    apart_mm = np.abs((np.asarray(first, float) - np.asarray(second, float)) @ corners.T)
    return bool((apart_mm <= TOLERANCE_MM).all())
