"""Assembles volumes from files of one slice each, such as classic DICOM. Pure."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from realtime.bundle.grid import TOLERANCE_MM
from realtime.errors import WireError
from realtime.sources.files.volume_file import VolumeFile, check_shape, placed

MAX_BEGUN = 8
"""Limit of incomplete volumes; beyond it the oldest is given up."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SliceFile:
    """A slice read from a file."""

    number: int
    """Number of the slice in the series, from 1, as the scanner counts."""
    volume_number: int | None
    """Number of its volume in the series, from 1; None if the scanner does not store it."""
    series: str
    series_name: str
    voxels: NDArray[Any]
    """[i, j]."""
    affine: NDArray[np.float64]
    """[4, 4], from i, j and mm along the slice normal to RAS+ mm."""
    tr_s: float | None

    @property
    def position_mm(self) -> float:
        """Position along the slice normal."""
        return float(self.affine[:3, 3] @ self.affine[:3, 2])


class Slices:
    """Collects the slices of one series until they form volumes.

    :param shape: shape of the expected volumes, RAS+ axes, which gives the number of slices per volume
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        self._begun: dict[int, dict[float, SliceFile]] = {}
        self._done: set[int] = set()

    def add(self, one: SliceFile) -> VolumeFile | None:
        """Add a slice and return the volume that it completes, if any.

        :raises WireError: code ``grid``, when the slices do not form a volume
        """
        n_slices = self._n_slices(one)
        volume_number = self._volume_number(one)
        if volume_number in self._done:
            return None
        slices = self._begun.setdefault(volume_number, {})
        slices.setdefault(round(one.position_mm, 2), one)
        if len(slices) == n_slices:
            del self._begun[volume_number]
            self._done.add(volume_number)
            return _volume(volume_number, [slices[height] for height in sorted(slices)])
        if len(self._begun) > MAX_BEGUN:
            given_up = next(iter(self._begun))
            self._done.add(given_up)
            n_came = len(self._begun.pop(given_up))
            _log.warning("volume %d is missing: %d of its %d slices came", given_up, n_came, n_slices)
        return None

    def _volume_number(self, one: SliceFile) -> int:
        """Return the number of a slice's volume. :raises WireError: when the slice has no orientation"""
        if one.volume_number is not None:
            return one.volume_number
        return 1 + (one.number - 1) // self._n_slices(one)

    def _n_slices(self, one: SliceFile) -> int:
        axes = orientations.io_orientation(one.affine)
        if not np.isfinite(axes).all():
            raise WireError("grid", f"expected a slice with an orientation, got {one.affine.tolist()}")
        return self._shape[int(axes[2, 0])]


def _volume(volume_number: int, slices: list[SliceFile]) -> VolumeFile:
    """Assemble a volume from its slices, sorted by position."""
    lowest = slices[0]
    if {one.voxels.shape for one in slices} != {lowest.voxels.shape}:
        raise WireError("grid", f"expected slices of equal shape in volume {volume_number}")
    apart_mm = np.diff([one.position_mm for one in slices])
    spacing_mm = float(apart_mm.mean()) if len(slices) > 1 else 1.0
    if not np.allclose(apart_mm, spacing_mm, atol=TOLERANCE_MM):
        raise WireError("grid", f"expected slices at equal distances, got {apart_mm.tolist()} mm")
    check_shape((*lowest.voxels.shape, len(slices)))
    stacked = np.stack([one.voxels for one in slices], axis=-1)
    voxels, affine = placed(stacked, lowest.affine * (1, 1, spacing_mm, 1))
    return VolumeFile(
        number=volume_number,
        series=lowest.series,
        series_name=lowest.series_name,
        voxels=voxels,
        affine=affine,
        tr_s=lowest.tr_s,
    )
