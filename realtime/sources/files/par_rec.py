"""Reads Philips PAR/REC: a text header, and the voxels of one or several volumes beside it. Pure."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from nibabel.parrec import PARRECArrayProxy, PARRECHeader
from numpy.typing import NDArray

from realtime.errors import WireError
from realtime.sources.files.file_names import Numbered, of_all_volumes
from realtime.sources.files.volume_file import Acquired, NotWholeError, VolumeFile, check_shape, placed

_END = b"END OF DATA DESCRIPTION"
_MAGNITUDE = 0


def read(name: str, par: bytes, rec: bytes, place: Callable[[], Numbered]) -> list[VolumeFile]:
    """Read the magnitude volumes of the first echo.

    :param place: returns what the file's name says; several volumes are numbered by their order
    :raises NotWholeError: when a file is truncated
    :raises WireError: codes ``file`` and ``grid``, when one is damaged or not supported
    """
    try:
        return _read(name, par, rec, place)
    except WireError:
        raise
    except Exception as error:  # nibabel raises any exception for a damaged header
        raise WireError("file", f"expected a readable .PAR file: {error}") from error


def _read(name: str, par: bytes, rec: bytes, place: Callable[[], Numbered]) -> list[VolumeFile]:
    header = _header(par)
    chosen = _magnitudes(header)
    numbered = place() if len(chosen) == 1 else None
    shape = header.get_data_shape()
    check_shape(shape[:3])
    n_bytes = math.prod(header.get_rec_shape()) * header.get_data_dtype().itemsize
    if len(rec) != n_bytes:
        raise NotWholeError(f"expected {n_bytes} bytes of voxels, as the .PAR says, got {len(rec)}")
    voxels = PARRECArrayProxy(io.BytesIO(rec), header, mmap=False)
    series, series_name = (numbered.series, numbered.series_name) if numbered else of_all_volumes(name)
    series, series_name = (
        f"{series}rec",
        f"{series_name}.rec",
    )  # some export .hdr and .img of the same name too
    tr_s = float(np.atleast_1d(header.general_info.get("repetition_time", 0))[0]) / 1_000
    n_others = math.prod(shape[3:]) - len(chosen)
    volumes = []
    for nth, volume in enumerate(chosen):
        turned, rows = placed(
            np.asarray(voxels[..., volume] if len(shape) > 3 else voxels), header.get_affine()
        )
        volumes.append(
            VolumeFile(
                number=numbered.number if numbered else nth + 1,
                series=series,
                series_name=series_name,
                voxels=turned,
                affine=rows,
                tr_s=tr_s if math.isfinite(tr_s) and tr_s > 0 else None,
                acquired=numbered.acquired if numbered else Acquired(moment=nth + 1),
                remark=f"{n_others} volumes of other echoes or of phase are passed over" if n_others else "",
                n_of_file=None if numbered else len(chosen),
            )
        )
    return volumes


def _header(par: bytes) -> PARRECHeader:
    if _END not in par:
        raise NotWholeError("expected a .PAR file up to its END OF DATA DESCRIPTION")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel warns of a run that has fewer volumes than were planned
        text = io.StringIO(par.decode("latin-1"), newline=None)
        header: PARRECHeader = PARRECHeader.from_fileobj(text, permit_truncated=True, strict_sort=True)
        return header


def _magnitudes(header: PARRECHeader) -> NDArray[Any]:
    """Return the places, in order of time, of the magnitude volumes of the first echo."""
    first_slices = np.asarray(header.get_sorted_slice_indices()).reshape(-1, header.get_data_shape()[2])[:, 0]
    rows = header.image_defs[first_slices]
    is_magnitude = rows["image_type_mr"] == _MAGNITUDE
    if not is_magnitude.any():
        raise WireError("file", f"expected magnitude images, got types {sorted(set(rows['image_type_mr']))}")
    chosen = np.flatnonzero(is_magnitude & (rows["echo number"] == rows["echo number"][is_magnitude].min()))
    return chosen[np.argsort(rows["dynamic scan number"][chosen], kind="stable")]
