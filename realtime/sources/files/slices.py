"""Assembles volumes from files of one slice each, such as classic DICOM. Pure."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime.errors import WireError
from realtime.sources.files.dicom_geometry import slice_distance_mm
from realtime.sources.files.volume_file import Acquired, VolumeFile, check_shape, placed

MAX_BEGUN = 8
"""Limit of incomplete volumes; beyond it the oldest is given up."""
_SAME_PLACE_DIGITS = 2
"""Positions in mm that agree to this number of digits are one."""

_log = logging.getLogger(__name__)


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
        self._begun: dict[int, dict[float, SliceFile]] = {}
        self._done: set[int] = set()
        self._places: set[float] = set()
        """Of the last whole volume."""
        self._has_told = False

    def add(self, one: SliceFile, volume_number: int, n_slices: int) -> VolumeFile | None:
        """Add a slice and return the volume that it completes, if any.

        :raises WireError: code ``grid``, when the slices do not form a volume
        """
        if volume_number in self._done:
            self._tell_late(one, volume_number)
            return None
        slices = self._begun.setdefault(volume_number, {})
        slices.setdefault(one.place, one)
        if len(slices) == n_slices:
            del self._begun[volume_number]
            self._done.add(volume_number)
            self._places = set(slices)
            return _volume(volume_number, [slices[place] for place in sorted(slices)])
        if len(self._begun) > MAX_BEGUN:
            given_up = next(iter(self._begun))
            self._done.add(given_up)
            n_came = len(self._begun.pop(given_up))
            _log.warning("volume %d is missing: %d of its %d slices came", given_up, n_came, n_slices)
        return None

    def _tell_late(self, one: SliceFile, volume_number: int) -> None:
        if one.place not in self._places and not self._has_told:
            self._has_told = True
            _log.warning(
                "a slice of volume %d of series %s (%s) came after the volume, of %d slices, was over",
                volume_number,
                one.series,
                one.series_name,
                len(self._places),
            )


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
