"""A volume read from a file of any format, and the checks common to all formats. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime import wire
from realtime.errors import WireError
from realtime.sources.orient import to_ras

MAX_FILE_BYTES = wire.MAX_VOLUME_BYTES + 2**24
"""The largest volume plus its header."""
DTYPE = "float32"
"""Volumes from files are converted to this dtype, because each file of a run may be scaled differently."""


@dataclass(frozen=True, kw_only=True)
class Acquired:
    """What the scanner says about an image of a series, beside its number."""

    acquisition: int | None = None
    """Number of the acquisition, which on some scanners is the volume."""
    moment: int | None = None
    """Number of the volume in the series, on scanners that store it."""
    echo_time_ms: float | None = None
    echo: int | None = None
    """Number of the echo."""
    time_s: float | None = None
    """When it was acquired, since midnight."""
    is_derived: bool = False
    """Whether the scanner computed it from other images, for example to correct motion."""
    part: str = "magnitude"
    """``magnitude``, ``phase``, ``real`` or ``imaginary``."""


@dataclass(frozen=True, kw_only=True)
class VolumeFile:
    """A volume read from a file."""

    number: int
    """Number of the volume in the series, as the scanner counts."""
    series: str
    """Identifies the series within the folder; letters and digits."""
    series_name: str
    """Readable name, which ``--series`` is compared with."""
    voxels: NDArray[Any]
    """[x, y, z], RAS+; C order, little endian."""
    affine: wire.Affine
    tr_s: float | None
    acquired: Acquired = Acquired()
    remark: str = ""
    """What the operator should know of the series; it is told once."""
    n_of_file: int | None = None
    """How many volumes its file holds, if that is a run; None where each volume has a file."""
    n_unused_bytes: int = 0
    """Bytes at the end of the file that hold nothing, such as the empty tiles of a mosaic."""


class NotWholeError(WireError):
    """A file is incomplete: it is still being written, or its transfer was aborted."""

    def __init__(self, message: str) -> None:
        super().__init__("not-whole", message)


def check_shape(shape: tuple[int, ...]) -> None:
    """Check the shape of a volume. :raises WireError: code ``grid``, when it is not supported"""
    is_good = len(shape) == 3 and all(1 <= edge <= 1_024 for edge in shape)
    if not is_good or math.prod(shape) * np.dtype(DTYPE).itemsize > wire.MAX_VOLUME_BYTES:
        raise WireError("grid", f"expected one volume of at most {wire.MAX_VOLUME_BYTES} bytes, got {shape}")


def placed(voxels: NDArray[Any], affine: NDArray[Any]) -> tuple[NDArray[Any], wire.Affine]:
    """Convert voxels to the runtime's dtype and RAS+ axes. :raises WireError: code ``grid``"""
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is repaired or censored later
        converted = voxels.astype(DTYPE, copy=False)
    return to_ras(converted, np.asarray(affine, dtype=np.float64))
