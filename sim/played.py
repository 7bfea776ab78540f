"""Anyone's recorded run, ready to be sent: the volumes of a 4D NIfTI file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from realtime import wire
from realtime.errors import WireError
from realtime.sources.orient import to_ras
from sim.errors import SimError
from sim.recording import make_start, wire_dtype

_PER_S = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
_LONGEST_TR_S = 60
"""A larger TR without a unit is in milliseconds."""
_STEM = re.compile(r"(\.nii|\.hdr|\.img|\.par|\.rec)?(\.gz)?$", re.IGNORECASE)


class PlayedSeries:
    """The volumes of a 4D file that nibabel reads, each turned to RAS+ axes.

    :param tr_s: the TR, where the header does not say it or is wrong
    :raises SimError: when the file cannot be read, is not 4D, or says no TR
    """

    def __init__(
        self, path: Path, *, subject: int, tr_s: float | None = None, run_id: str | None = None
    ) -> None:
        self._path = path
        try:
            # With an open handle, reading consecutive volumes takes one pass over a gzip file.
            image: Any = nib.load(path, keep_file_open=True)
            shape = tuple(int(n) for n in image.shape)
        except Exception as error:  # nibabel raises any exception for a damaged file
            raise SimError(
                f"{path}: expected a series that nibabel reads: {error}; give a NIfTI or PAR/REC file"
            ) from error
        if len(shape) != 4 or shape[3] < 2:
            raise SimError(
                f"{path}: expected four dimensions, the last of them time, got the shape {shape}; give a "
                "file of a whole run, or the folder of its volumes"
            )
        self._image = image
        self._affine = np.asarray(image.affine, dtype=np.float64)
        first, affine = self._turned(0)
        if first.dtype.kind not in "iuf":
            raise SimError(
                f"{path}: expected voxels that are integers or floats, got {first.dtype}; convert the file"
            )
        self._dtype = wire_dtype(first.dtype)
        x, y, z = first.shape
        self.start = make_start(
            run_id=run_id or _run_id(path),
            subject=subject,
            tr_s=tr_s or self._tr_s(),
            n_volumes=shape[3],
            shape=(x, y, z),
            affine=np.array(affine),
            dtype=self._dtype,
        )

    def volume(self, index: int) -> bytes:
        """Return the voxels of a volume in the wire format: C order, little endian."""
        return np.ascontiguousarray(self._turned(index)[0], dtype=self._dtype).tobytes()

    def picture_png(self, onset_volume: int) -> bytes:
        """There is none: a series says nothing of what was shown."""
        raise SimError(f"{self._path}: expected no picture at volume {onset_volume}")

    def _turned(self, index: int) -> tuple[npt.NDArray[Any], wire.Affine]:
        try:
            return to_ras(np.asanyarray(self._image.dataobj[..., index]), self._affine)
        except WireError as error:
            raise SimError(f"{self._path}: {error}") from error
        except Exception as error:  # nibabel raises any exception for a damaged file
            raise SimError(f"{self._path}: expected volume {index} to be readable: {error}") from error

    def _tr_s(self) -> float:
        """Return the TR of the header in seconds."""
        header = self._image.header
        tr = float(header.get_zooms()[3]) if len(header.get_zooms()) > 3 else 0.0
        unit = header.get_xyzt_units()[1] if hasattr(header, "get_xyzt_units") else "unknown"
        tr_s = tr * _PER_S.get(unit, 1e-3 if tr > _LONGEST_TR_S else 1.0)
        if not 0 < tr_s <= _LONGEST_TR_S:
            raise SimError(f"{self._path}: expected a TR in the header, got {tr} {unit}; give --tr SECONDS")
        return tr_s


def _run_id(path: Path) -> str:
    """Return a run's name after its file."""
    return re.sub("[^A-Za-z0-9_-]", "-", _STEM.sub("", path.name)).lstrip("_-")[:96] or "played"
