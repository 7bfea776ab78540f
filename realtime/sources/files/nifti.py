"""Reads NIfTI files that contain one volume each and whose names contain the volume's number. Pure."""

from __future__ import annotations

import io
import math
import re
import zlib
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from realtime.bundle.gzip import unpack
from realtime.errors import WireError
from realtime.sources.files.volume_file import (
    MAX_FILE_BYTES,
    NotWholeError,
    VolumeFile,
    check_shape,
    placed,
)

SUFFIXES = (".nii", ".nii.gz")
_NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>\d{1,9})(?P<after>\D*)\.nii(\.gz)?", re.DOTALL)
_HEADERS = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}


def read(name: str, data: bytes) -> VolumeFile:
    """Read the volume from the bytes of a file; the name without the number is the series.

    :raises NotWholeError: when the file is truncated
    :raises WireError: codes ``file`` and ``grid``, when the file is damaged or not supported
    """
    numbered = _NUMBERED.fullmatch(name)
    if numbered is None:
        raise WireError("file", f"expected a name with a volume number, such as run1_0001.nii, got {name}")
    series_name = f"{numbered['before']}{numbered['after']}"
    try:
        voxels, affine = _voxels(_unpacked(data) if name.endswith(".gz") else data)
    except WireError:
        raise
    except Exception as error:  # nibabel raises any exception for a damaged header
        raise WireError("file", f"expected {name} to be a readable NIfTI file: {error}") from error
    turned, rows = placed(voxels, affine)
    return VolumeFile(
        number=int(numbered["number"]),
        series=re.sub("[^A-Za-z0-9]", "", series_name)[:32] or "nifti",
        series_name=series_name,
        voxels=turned,
        affine=rows,
        tr_s=None,  # files of a single volume seldom contain it
    )


def _unpacked(data: bytes) -> bytes:
    try:
        unpacked = unpack(data, MAX_FILE_BYTES + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise NotWholeError(f"expected a complete gzip stream: {error}") from error
    if len(unpacked) > MAX_FILE_BYTES:
        raise WireError("file", f"expected at most {MAX_FILE_BYTES} bytes after decompression")
    return unpacked


def _voxels(data: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the stored voxels, scaled, and their affine."""
    kind = {int.from_bytes(data[:4], order): order for order in ("little", "big")}
    size = next((size for size in _HEADERS if size in kind), None)
    if size is None or len(data) < size:
        raise NotWholeError(f"expected a NIfTI header of 348 or 540 bytes, got {len(data)} bytes")
    header = _HEADERS[size].from_fileobj(io.BytesIO(data))
    if not header["magic"].item().startswith((b"n+1", b"n+2")):
        raise WireError("file", "expected header and voxels in one file, got a header only")
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        raise WireError(
            "grid", "expected an affine in the header, got neither sform nor qform; export with one"
        )
    shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), int(header.get_data_offset())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    check_shape(shape)
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or offset < size:
        raise WireError("file", f"expected voxels of an integer or float dtype, got {dtype} at byte {offset}")
    n_voxels = math.prod(shape)
    if len(data) < offset + n_voxels * dtype.itemsize:
        raise NotWholeError(f"expected {offset + n_voxels * dtype.itemsize} bytes, got {len(data)}")
    stored = np.frombuffer(data, dtype, n_voxels, offset).reshape(shape, order="F")
    slope, intercept = header.get_slope_inter()
    if slope is not None and (slope, intercept) != (1, 0):
        stored = stored * np.float64(slope) + np.float64(intercept)
    return stored, header.get_best_affine()
