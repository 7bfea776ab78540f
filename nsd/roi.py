"""The region of interest a decoder reads."""

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
"""Subject -> voxels of the nsdgeneral region at 1.8 mm; synthetic subjects have their own number."""

UNREADABLE = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    zlib.error,
)
"""What nibabel raises for a file that is damaged or no NIfTI image."""


@dataclass(frozen=True, kw_only=True)
class Roi:
    """``mask`` is bool ``[x, y, z]``; ``affine`` float64 ``[4, 4]``, voxel index to mm."""

    mask: npt.NDArray[np.bool_]
    affine: npt.NDArray[np.float64]

    @property
    def n_voxels(self) -> int:
        """How many voxels the region has."""
        return int(np.count_nonzero(self.mask))


def read_roi(layout: Layout, subject: int) -> Roi:
    """Read the nsdgeneral region (> 0) of ``subject``.

    :raises MissingFile: there is no such file.
    :raises BadFile: not a readable three-dimensional NIfTI image, or without any voxel > 0.
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
    """Raise `GridMismatch` unless the NIfTI series ``image`` of ``path`` lies on the grid of ``roi``."""
    grid = tuple(image.shape[:3])
    if roi.mask.shape != grid:
        raise GridMismatch(
            f"{path}: expected the grid of {roi_path}, {roi.mask.shape}, found {grid};"
            " series and region must come from the same subject and space"
        )
    if not np.allclose(roi.affine, image.affine, atol=1e-3):
        expected, found = roi.affine.tolist(), image.affine.tolist()
        raise GridMismatch(f"{path}: expected the affine of {roi_path}, {expected}, found {found}")
