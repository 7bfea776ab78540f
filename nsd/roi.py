"""Reads the region of interest (ROI) of a decoder."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nsd.errors import BadFile, GridMismatch, require_file
from nsd.layout import Layout

NSDGENERAL_VOXELS = {
    1: 15_724, 2: 14_278, 3: 15_226, 4: 13_153, 5: 13_039, 6: 17_907, 7: 12_682, 8: 14_386,
}  # fmt: skip
"""Number of voxels of the nsdgeneral ROI at 1.8 mm, by subject; synthetic subjects differ."""

UNREADABLE = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    zlib.error,
)
"""Exceptions of nibabel for a file that is damaged or not a NIfTI image."""


@dataclass(frozen=True, kw_only=True)
class Roi:
    """``mask`` is bool ``[x, y, z]``; ``affine`` float64 ``[4, 4]``, voxel index to mm."""

    mask: npt.NDArray[np.bool_]
    affine: npt.NDArray[np.float64]

    @property
    def n_voxels(self) -> int:
        """Number of voxels in the ROI."""
        return int(np.count_nonzero(self.mask))


def read_roi(layout: Layout, subject: int) -> Roi:
    """Read the nsdgeneral ROI (> 0) of ``subject``.

    :raises MissingFile: when the file does not exist
    :raises BadFile: when it is not a readable three-dimensional NIfTI image, or has no voxel > 0
    """
    path = require_file(layout.roi(subject), f"the nsdgeneral region of subject {subject}")
    try:
        image: Any = nib.load(path)
        labels = np.asanyarray(image.dataobj)
    except UNREADABLE as error:
        raise BadFile(path, "a NIfTI image", str(error)) from error
    if labels.ndim != 3:
        raise BadFile(path, "three dimensions [x, y, z]", f"shape {labels.shape}")
    mask = labels > 0
    if not mask.any():
        raise BadFile(path, "voxels with a label > 0", "none")
    return Roi(mask=mask, affine=np.asarray(image.affine, dtype=np.float64))


def check_grid(path: Path, image: Any, roi: Roi, roi_path: Path) -> None:
    """Check that the NIfTI series ``image`` has the grid of ``roi``. :raises GridMismatch: if not"""
    grid = tuple(image.shape[:3])
    if roi.mask.shape != grid:
        raise GridMismatch(
            f"{path}: expected the grid of {roi_path}, {roi.mask.shape}, found {grid};"
            " series and ROI must come from the same subject and space"
        )
    if not np.allclose(roi.affine, image.affine, atol=1e-3):
        expected, found = roi.affine.tolist(), image.affine.tolist()
        raise GridMismatch(f"{path}: expected the affine of {roi_path}, {expected}, found {found}")
