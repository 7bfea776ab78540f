"""Reads and checks the files of a bundle: digests, the ROI, arrays.

A bundle may come from a stranger. Only regular files are read: to open a FIFO would wait for a writer, and a
device may never end. A link to a regular file is allowed, because model hubs store files that way and the
digest covers the content. Nothing is unpickled, and shapes are checked before memory is allocated.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from realtime.bundle.gzip import unpack
from realtime.bundle.regular_file import open_regular
from realtime.errors import BundleError
from realtime.wire import is_invertible

MAX_GRID_VOXELS = 2**27
MODEL_SUFFIXES = (".onnx", ".data", ".plan", ".engine", ".npz", ".npy")
"""Suffixes of graphs and arrays; ``.data`` files are external weights, which the engine opens."""

_HEADER_BYTES = 348
_MAX_OFFSET_BYTES = 2**20
"""Limit of the offset of the voxels in their file; only extensions lie between header and voxels."""
_MAX_FILE_BYTES = _MAX_OFFSET_BYTES + 8 * MAX_GRID_VOXELS
_NIBABEL_FAILURES = (
    EOFError,
    HeaderDataError,
    ImageFileError,
    OSError,
    ValueError,
    WrapStructError,
    zlib.error,
)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file in hexadecimal; raises as :func:`open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Check the SHA-256 of a file.

    :raises BundleError: when the file cannot be read or has changed
    """
    try:
        found = file_sha256(path)
    except OSError as error:
        raise BundleError(
            f"{path}: a file of the bundle cannot be read: {error.strerror}; copy the whole folder again"
        ) from error
    if found != expected:
        raise BundleError(
            f"{path}: changed since the bundle was made: expected SHA-256 {expected}, found {found}; "
            "copy it again from its source, or export the bundle again"
        )


def check_no_unlisted_files(folder: Path, listed: Collection[str]) -> None:
    """Check that a folder contains no graphs or arrays besides those that ``bundle.json`` lists.

    Unlisted ones may belong to another model and have no known digest. Subfolders are not checked.

    :raises BundleError: when there are unlisted graphs or arrays; the message names them
    """
    found = {path.name for path in folder.iterdir() if path.name.lower().endswith(MODEL_SUFFIXES)}
    if unknown := sorted(found - set(listed)):
        names = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
        raise BundleError(
            f"{folder}: expected only the files that bundle.json lists, found also {names}; "
            "move these files away, or export the bundle again"
        )


def read_mask(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Read an ROI from a NIfTI file: voxels > 0 as bool [x, y, z], and the affine [4, 4].

    :raises BundleError: when the file cannot be read as a single volume
    """
    voxels, affine = _read_nifti(path)
    return voxels > 0, affine


def read_volume(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Read a volume from a NIfTI file: finite voxels [x, y, z], and the affine [4, 4].

    :raises BundleError: when the file cannot be read as a single volume of finite voxels
    """
    voxels, affine = _read_nifti(path)
    volume = voxels.astype(np.float32)
    if not (np.isfinite(volume).all() and np.isfinite(affine).all()):
        raise BundleError(f"{path}: expected finite voxels and a finite affine; make the volume again")
    if not is_invertible(affine):
        raise BundleError(f"{path}: expected an affine in mm that can be inverted, found {affine.tolist()}")
    return volume, affine


def _read_nifti(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    try:
        with open_regular(path, _MAX_FILE_BYTES) as file:
            content = file.read()  # a read of at most so many bytes would allocate them all
        if path.suffix == ".gz":
            content = unpack(content, _nifti_bytes(unpack(content, _HEADER_BYTES)))
        if len(content) < _nifti_bytes(content):  # before nibabel allocates memory for the voxels
            raise ValueError(f"expected {_nifti_bytes(content)} bytes, found {len(content)}")
        image = nibabel.Nifti1Image.from_bytes(content)
        voxels = np.asarray(image.dataobj)
    except _NIBABEL_FAILURES as error:
        raise BundleError(f"{path}: expected a NIfTI volume: {error}") from error
    return voxels, np.asarray(image.affine, dtype=np.float64)


def _nifti_bytes(content: bytes) -> int:
    """Return the size of a NIfTI file up to its last voxel, from its header.

    :raises ValueError: when the header does not describe a single volume
    """
    beginning = io.BytesIO(content[:_HEADER_BYTES])
    header = nibabel.Nifti1Header.from_fileobj(beginning)
    shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), int(header.get_data_offset())
    if len(shape) != 3 or not 0 < math.prod(shape) <= MAX_GRID_VOXELS:
        raise ValueError(f"found shape {shape}")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueError(f"found voxels of {dtype}")
    if not 0 <= offset <= _MAX_OFFSET_BYTES:
        raise ValueError(f"found voxels at byte {offset}")
    return offset + math.prod(map(int, shape)) * int(dtype.itemsize)


def read_npy(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Read a float32 array of a known shape from an ``.npy`` file.

    :raises BundleError: when the file cannot be read or holds another array
    """
    try:
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size < 4 * math.prod(shape):  # before memory is allocated for it
                raise BundleError(f"{path}: expected an array of {shape}, found too few bytes")
            return _read_array(stream, str(path), shape)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_npz(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Read float32 arrays of known names and shapes from an ``.npz`` file.

    :raises BundleError: when the file cannot be read or holds other arrays
    """
    arrays = {}
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            for name, shape in shapes.items():
                entry = archive.getinfo(f"{name}.npy")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise BundleError(
                        f"{path}: expected a stored or deflated .npz, found another compression"
                    )
                with archive.open(entry) as stream:
                    arrays[name] = _read_array(stream, f"{path}, {name}", shape)
    except BundleError:
        raise
    except Exception as error:  # zipfile raises many kinds of exceptions for a damaged archive
        raise BundleError(f"{path}: expected an .npz with {', '.join(shapes)}: {error}") from error
    return arrays


def _read_array(stream: IO[bytes], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise BundleError(f"{name}: expected .npy format 1.0, found {version}")
        found, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except BundleError:
        raise
    except Exception as error:  # the header is a Python literal, whose parser raises many kinds of exceptions
        raise BundleError(f"{name}: expected an array in .npy format: {error}") from error
    if found != shape or dtype != np.dtype("<f4") or (is_fortran and len(shape) > 1):
        raise BundleError(f"{name}: expected C-order float32 {shape}, found {dtype} {found}; export it again")
    n_bytes = 4 * math.prod(shape)
    data = stream.read(n_bytes)
    if len(data) != n_bytes:
        raise BundleError(f"{name}: expected {n_bytes} bytes of numbers, found {len(data)}")
    array = np.frombuffer(data, dtype=np.float32).reshape(shape)
    if not np.isfinite(array).all():
        raise BundleError(f"{name}: expected finite numbers; export it again")
    return array
