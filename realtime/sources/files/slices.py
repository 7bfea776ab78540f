"""Assembles volumes from files of one slice each, such as classic DICOM. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime.errors import WireError
from realtime.sources.files.begun import Begun
from realtime.sources.files.dicom_geometry import slice_distance_mm
from realtime.sources.files.volume_file import Acquired, VolumeFile, check_shape, placed

_SAME_PLACE_DIGITS = 2
"""Positions in mm that agree to this number of digits are one."""


@dataclass(frozen=True, kw_only=True)
class SliceFile:
    """A slice read from a file."""

    number: int
    """Number of the slice in the series, from 1, as the scanner counts."""
    n_slices: int | None
    """Number of slices of a volume; None if the scanner does not store it."""
    distance_mm: float
    """Distance of slices as the header says, for a volume of one slice."""
    series: str
    series_name: str
    voxels: NDArray[Any]
    """[i, j]."""
    affine: NDArray[np.float64]
    """[4, 4], from i, j and mm along the slice normal to RAS+ mm."""
    tr_s: float | None
    acquired: Acquired = Acquired()

    @property
    def place(self) -> float:
        """Position along the slice normal in mm, rounded: equal for the same slice of every volume."""
        return round(float(self.affine[:3, 3] @ self.affine[:3, 2]), _SAME_PLACE_DIGITS)


class Slices:
    """Collects the slices of one echo of a series until they form volumes."""

    def __init__(self) -> None:
        self.begun: Begun[float, SliceFile] = Begun("slices")

    def add(self, one: SliceFile, volume_number: int, n_slices: int) -> VolumeFile | None:
        """Add a slice and return the volume that it completes, if any.

        :raises WireError: code ``grid``, when the slices do not form a volume
        """
        slices = self.begun.add(volume_number, one.place, one, n_slices)
        return _volume(volume_number, [slices[place] for place in sorted(slices)]) if slices else None


def _volume(volume_number: int, slices: list[SliceFile]) -> VolumeFile:
    """Assemble a volume from its slices, sorted by position."""
    lowest = slices[0]
    if {one.voxels.shape for one in slices} != {lowest.voxels.shape}:
        raise WireError("grid", f"expected slices of equal shape in volume {volume_number}")
    exact_mm = np.array([one.affine[:3, 3] @ lowest.affine[:3, 2] for one in slices])
    distance_mm = slice_distance_mm(exact_mm) if len(slices) > 1 else lowest.distance_mm
    check_shape((*lowest.voxels.shape, len(slices)))
    stacked = np.stack([one.voxels for one in slices], axis=-1)
    voxels, affine = placed(stacked, lowest.affine * (1, 1, distance_mm, 1))
    return VolumeFile(
        number=volume_number,
        series=lowest.series,
        series_name=lowest.series_name,
        voxels=voxels,
        affine=affine,
        tr_s=lowest.tr_s,
        acquired=lowest.acquired,
    )
