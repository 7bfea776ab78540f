"""The values of one volume at the region's voxels, wherever these lie in it. Pure.

The transforms of the session and of the volume's motion are joined before, so that the volume is interpolated
once, by the cubic spline through its voxels, and nowhere but at the region.

Legend: V voxels of the region.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from realtime.registration.rigid import Matrix
from realtime.registration.splines import coefficients, finite, sample, transformed, voxels_of

_LEAST_SHARE = 1e-3
"""A voxel that is no number spoils what it would have this share in, by linear interpolation."""


class RegionSampler:
    """Interpolates volumes at the region's voxels."""

    def __init__(self, positions_mm: ArrayLike) -> None:
        """Take the positions [V, 3] of the region's voxels in the decoder's reference."""
        self._positions = np.ascontiguousarray(np.asarray(positions_mm, np.float64).T)

    def sample(self, volume: NDArray[Any], affine: Matrix, to_volume: Matrix) -> NDArray[np.float32]:
        """Return a volume's values [V] at the region's voxels.

        ``to_volume`` [4, 4] maps the decoder's reference to the volume, in mm. A voxel is NaN that is outside
        the volume's field of view or next to a voxel that is no number.
        """
        voxels = transformed(voxels_of(affine) @ to_volume, self._positions)
        values = sample(coefficients(finite(volume)), voxels)
        bad = ~np.isfinite(volume)
        if bad.any():
            share = ndimage.map_coordinates(bad.astype(np.float32), voxels, order=1, mode="nearest")
            values[share > _LEAST_SHARE] = np.nan
        return values.astype(np.float32)
