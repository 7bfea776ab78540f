"""Where the planes of a DICOM image lie. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime.bundle.grid import TOLERANCE_MM
from realtime.errors import WireError
from realtime.sources.orient import LPS_TO_RAS


def plane_affine(orientation: Any, spacing_mm: Any, position_mm: Any) -> NDArray[np.float64]:
    """Return the affine of a plane, from row, column and mm along the normal to DICOM's LPS+ mm.

    :param orientation: [6], direction in which columns count, then rows (ImageOrientationPatient)
    :param spacing_mm: [2], distance of rows, then of columns (PixelSpacing)
    :param position_mm: [3], centre of the first pixel (ImagePositionPatient)
    """
    along_row, along_column = np.asarray(orientation, dtype=np.float64).reshape(2, 3)
    between_rows_mm, between_columns_mm = (float(each) for each in spacing_mm)
    affine = np.eye(4)
    affine[:3, 0] = along_column * between_rows_mm
    affine[:3, 1] = along_row * between_columns_mm
    affine[:3, 2] = np.cross(along_row, along_column)
    affine[:3, 3] = np.asarray(position_mm, dtype=np.float64)
    return affine


def to_ras_plane(in_patient: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert a plane's affine to RAS+ mm. :raises WireError: code ``grid``, when it is not finite"""
    affine: NDArray[np.float64] = LPS_TO_RAS @ in_patient
    if not np.isfinite(affine).all() or not affine[:3, 2].any():
        raise WireError("grid", f"expected a slice with a finite position, got {affine.tolist()}")
    return affine


def slice_distance_mm(heights_mm: NDArray[np.float64]) -> float:
    """Return the distance of sorted slices. :raises WireError: code ``grid``, when it differs"""
    apart_mm = np.diff(heights_mm)
    mean_mm = float(apart_mm.mean())
    if not np.allclose(apart_mm, mean_mm, atol=TOLERANCE_MM):
        raise WireError("grid", f"expected slices at equal distances, got {apart_mm.tolist()} mm")
    return mean_mm
