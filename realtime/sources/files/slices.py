"""Volumes from files of one slice each, as classic DICOM has them. Pure: slices in, volumes out."""

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
"""Volumes that may lack slices at a time; then the one that began first is given up."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SliceFile:
    """What a file holds."""

    number: int
    """Its place among all slices of the series, from 1, as the scanner counts."""
    moment: int | None
    """Its volume's place in the series, from 1, where the scanner tells."""
    series: str
    series_name: str
    voxels: NDArray[Any]
    """[i, j]."""
    affine: NDArray[np.float64]
    """[4, 4], from i, j and mm along the slice's direction to mm to the right, front and up."""
    tr_s: float | None

    @property
    def height_mm(self) -> float:
        """How far it is along its direction."""
        return float(self.affine[:3, 3] @ self.affine[:3, 2])


class Slices:
    """The slices of one series, until they make volumes.

    :param shape: of the grid on which volumes are wanted, axes to the right, front and up: it tells how many
        slices a volume has.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        self._begun: dict[int, dict[float, SliceFile]] = {}
        self._done: set[int] = set()

    def add(self, one: SliceFile) -> VolumeFile | None:
        """Take a slice; returns the volume that it completes.

        :raises WireError: code ``grid``, where the slices make no volume.
        """
        n_slices = self._n_slices(one)
        moment = self._moment(one)
        if moment in self._done:
            return None
        slices = self._begun.setdefault(moment, {})
        slices.setdefault(round(one.height_mm, 2), one)
        if len(slices) == n_slices:
            del self._begun[moment]
            self._done.add(moment)
            return _volume(moment, [slices[height] for height in sorted(slices)])
        if len(self._begun) > MAX_BEGUN:
            given_up = next(iter(self._begun))
            self._done.add(given_up)
            n_came = len(self._begun.pop(given_up))
            _log.warning("volume %d is missing: %d of its %d slices came", given_up, n_came, n_slices)
        return None

    def _moment(self, one: SliceFile) -> int:
        """The number of the volume that a slice belongs to. :raises WireError: where it has no direction."""
        return one.moment if one.moment is not None else 1 + (one.number - 1) // self._n_slices(one)

    def _n_slices(self, one: SliceFile) -> int:
        axes = orientations.io_orientation(one.affine)
        if not np.isfinite(axes).all():
            raise WireError("grid", f"expected a slice with a direction, got {one.affine.tolist()}")
        return self._shape[int(axes[2, 0])]


def _volume(moment: int, slices: list[SliceFile]) -> VolumeFile:
    """Slices in rising order as a volume."""
    lowest = slices[0]
    if {one.voxels.shape for one in slices} != {lowest.voxels.shape}:
        raise WireError("grid", f"expected slices of one shape in volume {moment}")
    apart_mm = np.diff([one.height_mm for one in slices])
    spacing_mm = float(apart_mm.mean()) if len(slices) > 1 else 1.0
    if not np.allclose(apart_mm, spacing_mm, atol=TOLERANCE_MM):
        raise WireError("grid", f"expected slices at equal distances, got {apart_mm.tolist()} mm")
    check_shape((*lowest.voxels.shape, len(slices)))
    stacked = np.stack([one.voxels for one in slices], axis=-1)
    voxels, affine = placed(stacked, lowest.affine * (1, 1, spacing_mm, 1))
    return VolumeFile(
        number=moment,
        series=lowest.series,
        series_name=lowest.series_name,
        voxels=voxels,
        affine=affine,
        tr_s=lowest.tr_s,
    )
