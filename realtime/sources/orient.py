"""Reorients volumes to RAS+ axes (right, anterior, superior), which the runtime expects. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from realtime import wire
from realtime.errors import WireError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Converts coordinates from DICOM's LPS+ to RAS+."""


def to_ras(voxels: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], wire.Affine]:
    """Flip and permute a volume [i, j, k] so that its axes are as close as possible to RAS+.

    :param affine: [4, 4], voxel indices to RAS+ mm
    :returns: the voxels, C order and little endian, and their affine
    :raises WireError: code ``grid``, when the affine is not finite, not invertible or ambiguous
    """
    if not wire.is_invertible(affine):
        raise WireError("grid", f"expected an invertible affine, got {affine.tolist()}")
    axes = orientations.io_orientation(affine)
    if not np.isfinite(axes).all():
        raise WireError("grid", f"expected an affine with distinct axes, got {affine.tolist()}")
    turned = orientations.apply_orientation(voxels, axes)
    placed = affine @ orientations.inv_ornt_aff(axes, voxels.shape)
    ordered = np.ascontiguousarray(turned, dtype=turned.dtype.newbyteorder("<"))
    return ordered, rows(placed)


def rows(affine: NDArray[np.float64]) -> wire.Affine:
    """Convert an affine [4, 4] to the type used in messages."""
    a, b, c, d = ((float(w), float(x), float(y), float(z)) for w, x, y, z in affine)
    return a, b, c, d
