"""Reads the files of a bundle: digests, the region, plain arrays. Nothing is unpickled, shapes come first."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from realtime.bundle.gzip import unpack
from realtime.errors import BundleError

MAX_GRID_VOXELS = 2**27
MODEL_SUFFIXES = (".onnx", ".data", ".plan", ".engine", ".npz", ".npy")
"""Of files that hold graphs or numbers; ``.data`` are the weights of a big graph, which its engine opens."""

_HEADER_BYTES = 348
_MAX_OFFSET_BYTES = 2**20
"""Of a region's voxels in its file: between header and voxels stand extensions, or nothing."""
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
    """SHA-256 of a file, in hexadecimal, as ``bundle.json`` lists it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """See that a file is the one that was exported.

    :raises BundleError: when it cannot be read, or a byte of it changed
    """
    try:
        found = file_sha256(path)
    except OSError as error:
        raise BundleError(
            f"{path}: listed in the bundle but not readable: {error.strerror}; copy the whole folder again"
        ) from error
    if found != expected:
        raise BundleError(
            f"{path}: changed since the bundle was made: expected SHA-256 {expected}, found {found}; "
            "copy it again from where it came, or export the bundle again"
        )


def check_nothing_besides(folder: Path, listed: Collection[str]) -> None:
    """See that no graph and no numbers lie beside those that ``bundle.json`` lists.

    They would be another model's, or a part whose digest nothing knows. Only the folder itself is looked at.

    :raises BundleError: naming them
    """
    found = {path.name for path in folder.iterdir() if path.name.lower().endswith(MODEL_SUFFIXES)}
    if unknown := sorted(found - set(listed)):
        names = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
        raise BundleError(
            f"{folder}: expected the files that bundle.json lists, found besides {names}; "
            "move what is no part of the bundle away, or export it again"
        )


def read_bytes(path: Path, limit: int) -> bytes:
    """A small file.

    :raises BundleError: when it cannot be read, or is larger than ``limit`` bytes
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise BundleError(f"{path}: not readable: {error.strerror}; is this a bundle?") from error
    if len(content) > limit:
        raise BundleError(f"{path}: expected at most {limit} bytes, found more")
    return content


def read_mask(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The region: where a NIfTI volume is > 0, bool [x, y, z], and its affine [4, 4]."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = unpack(content, _mask_bytes(unpack(content, _HEADER_BYTES)))
        if len(content) < _mask_bytes(content):  # before memory is taken for its voxels
            raise ValueError(f"expected {_mask_bytes(content)} bytes, found {len(content)}")
        image = nibabel.Nifti1Image.from_bytes(content)
        mask = np.asarray(image.dataobj) > 0
    except _NIBABEL_FAILURES as error:
        raise BundleError(f"{path}: expected a NIfTI volume: {error}") from error
    return mask, np.asarray(image.affine, dtype=np.float64)


def _mask_bytes(content: bytes) -> int:
    """Size of the NIfTI file that begins so, up to its last voxel.

    :raises ValueError: where it holds something else than one volume
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
    """A float32 array of a known shape from an ``.npy`` file."""
    try:
        with path.open("rb") as stream:
            if path.stat().st_size < 4 * math.prod(shape):  # before memory is taken for it
                raise BundleError(f"{path}: expected an array of {shape}, found too few bytes")
            return _read_array(stream, str(path), shape)
    except OSError as error:
        raise BundleError(f"{path}: not readable: {error.strerror or error}") from error


def read_npz(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Float32 arrays of known names and shapes from an ``.npz`` file."""
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name, shape in shapes.items():
                entry = archive.getinfo(f"{name}.npy")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise BundleError(f"{path}: expected an .npz as numpy writes it, found another packing")
                with archive.open(entry) as stream:
                    arrays[name] = _read_array(stream, f"{path}, {name}", shape)
    except BundleError:
        raise
    except Exception as error:  # whatever zipfile makes of a damaged archive
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
    except Exception as error:  # whatever Python makes of a header that is a Python literal
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
