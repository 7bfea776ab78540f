"""A volume as a smooth function of position: cubic B-splines (Unser 1999, "Splines: a perfect fit").

Legend: N points; a volume is [x, y, z].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from realtime.errors import RegistrationError
from realtime.registration.rigid import Matrix

Volume = NDArray[np.float32]
Positions = NDArray[np.float64]
"""Positions [3, N]."""

LEAST_FINITE = 0.05
"""Share of a volume's voxels that are numbers; some programs write what is outside the head as NaN."""


def finite(volume: NDArray[Any]) -> Volume:
    """Return a volume in float32; a voxel that is no number has the mean of its neighbours that are, or 0."""
    values = np.asarray(volume, np.float32)
    if values.ndim != 3:
        raise RegistrationError(f"expected a volume [x, y, z], got an array of shape {values.shape}")
    good = np.isfinite(values)
    n_good = int(good.sum())
    if n_good < LEAST_FINITE * values.size:
        raise RegistrationError(
            f"expected a volume of numbers, got {values.size - n_good} of {values.size} voxels that are not "
            "finite; look whether the scanner reconstructs its images"
        )
    if n_good < values.size:
        share, total = (
            ndimage.uniform_filter(one, 3, np.float32, mode="constant")
            for one in (good.astype(np.float32), np.where(good, values, 0))
        )
        is_beside = share > 0.5 / 27
        values = np.where(good, values, np.where(is_beside, total / np.where(is_beside, share, 1), 0))
    return values


def with_contrast(volume: NDArray[Any]) -> Volume:
    """Return the finite volume, or raise :class:`RegistrationError` where all of its voxels are equal."""
    values = finite(volume)
    if values.min() == values.max():
        raise RegistrationError(
            f"expected a volume with a head in it, got one in which every voxel is {values.flat[0]:g}; "
            "look whether the scanner reconstructs its images"
        )
    return values


def voxels_of(affine: Matrix) -> Matrix:
    """Return the matrix [4, 4] from mm to voxels."""
    try:
        if np.isfinite(affine).all():
            return np.asarray(np.linalg.inv(affine), np.float64)
    except np.linalg.LinAlgError:
        pass
    raise RegistrationError(
        f"expected an affine [4, 4] that can be inverted, got {np.asarray(affine).tolist()}"
    )


def coefficients(volume: Volume) -> Volume:
    """Return the coefficients of the spline through every voxel; beyond its edges the volume is mirrored."""
    return np.asarray(ndimage.spline_filter(volume, 3, np.float32, mode="mirror"))


def blurred(volume: Volume, sd_voxels: ArrayLike) -> Volume:
    """Return the volume smoothed by a Gaussian, in voxels along each axis.

    Taken as coefficients of a spline, it is smoothed once more by the B-spline, whose variance is 1/3 voxel.
    """
    return np.asarray(
        ndimage.gaussian_filter(volume, sd_voxels, output=np.float32, mode="mirror", truncate=3)
    )


def sample(spline: Volume, voxels: Positions, margin: float = -0.5) -> NDArray[np.float64]:
    """Return a spline's values [N] at positions in voxels; NaN where a margin or what is outside begins.

    The field of view ends half a voxel beyond the centres of the outermost voxels.
    """
    inside = np.ones(voxels.shape[1], dtype=bool)
    for row, n in zip(voxels, spline.shape, strict=True):
        edge = min(margin, n / 8)
        inside &= (row >= edge) & (row <= n - 1 - edge)
    values = np.full(voxels.shape[1], np.nan)
    wanted = voxels if inside.all() else voxels[:, inside]
    values[inside] = ndimage.map_coordinates(
        spline, wanted, np.float64, order=3, mode="mirror", prefilter=False
    )
    return values


def transformed(matrix: Matrix, positions: Positions) -> Positions:
    """Return positions moved by a matrix [4, 4], without BLAS, which would share the sums among threads."""
    x, y, z = positions
    return np.stack([row[0] * x + row[1] * y + row[2] * z + row[3] for row in matrix[:3].tolist()])
