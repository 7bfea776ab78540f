"""Reads the volumes of a run lazily."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nsd.design import N_DESIGN_ROWS, Trial, read_design, trials
from nsd.errors import BadFile, BadRequest, require_file
from nsd.layout import Layout
from nsd.roi import UNREADABLE, Roi, check_grid
from nsd.sessions import TR_S, RunKey

_BLOCK = 25  # volumes in memory at once (35 MB at full size)


@dataclass(frozen=True)
class Run:
    """One task run. Header, design and volumes are read on first use.

    The series on disk has 226 volumes, the design 225 rows; the last volume has no design row and is dropped.
    """

    layout: Layout
    subject: int
    session: int
    run: int

    @property
    def key(self) -> RunKey:
        """Subject, session and run as one sortable value."""
        return RunKey(self.subject, self.session, self.run)

    @cached_property
    def design(self) -> npt.NDArray[np.int64]:
        """For each volume the 1-based 73k id that appears, or 0: ``int64[225]``."""
        return read_design(self.layout.design(self.subject, self.session, self.run))

    @property
    def trials(self) -> list[Trial]:
        """Presentations in order, with 0-based images."""
        return trials(self.design)

    @cached_property
    def _image(self) -> Any:
        path = require_file(self.layout.timeseries(*self.key), f"the volumes of {self.key}")
        try:
            # With an open handle, reading consecutive volumes takes one pass over a gzip file.
            image: Any = nib.load(path, keep_file_open=True)
        except UNREADABLE as error:
            raise BadFile(path, "a NIfTI series", str(error)) from error
        if len(image.shape) != 4 or image.shape[3] != N_DESIGN_ROWS + 1:
            expected = f"four dimensions with {N_DESIGN_ROWS + 1} volumes ({N_DESIGN_ROWS} design rows + 1)"
            raise BadFile(path, expected, f"shape {image.shape}")
        return image

    @property
    def n_volumes(self) -> int:
        """Number of volumes with a design row, 225."""
        return N_DESIGN_ROWS

    @property
    def tr_s(self) -> float:
        """Repetition time in seconds."""
        return TR_S

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the grid, ``(x, y, z)``."""
        x, y, z, _ = self._image.shape
        return int(x), int(y), int(z)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """``float64[4, 4]``, voxel index to mm."""
        return np.asarray(self._image.affine, dtype=np.float64)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the volumes: as stored, or float if the file scales them."""
        return np.dtype(self._read(0, 1).dtype)

    def volume(self, index: int) -> npt.NDArray[Any]:
        """Return volume ``index`` (0-based, < 225) as a C-order array ``[x, y, z]``.

        :raises BadRequest: when there is no such volume
        """
        if not 0 <= index < self.n_volumes:
            raise BadRequest(f"volume {index}: expected 0 to {self.n_volumes - 1} for {self.key}")
        return np.ascontiguousarray(self._read(index, index + 1)[..., 0])

    def roi_series(self, roi: Roi) -> npt.NDArray[np.float32]:
        """Return the series of the ROI, ``float32[225, V]``; columns are the mask's voxels in C order.

        :raises GridMismatch: when ROI and series have different grids
        """
        check_grid(self.layout.timeseries(*self.key), self._image, roi, self.layout.roi(self.subject))
        series = np.empty((self.n_volumes, roi.n_voxels), dtype=np.float32)
        for start in range(0, self.n_volumes, _BLOCK):
            stop = min(start + _BLOCK, self.n_volumes)
            series[start:stop] = self._read(start, stop)[roi.mask].T
        return series

    def _read(self, start: int, stop: int) -> npt.NDArray[Any]:
        image = self._image
        try:
            return np.asanyarray(image.dataobj[..., start:stop])
        except UNREADABLE as error:
            path = self.layout.timeseries(*self.key)
            raise BadFile(path, f"volumes {start} to {stop - 1} to be readable", str(error)) from error
