"""A file that holds one volume, whatever its format. Pure: bytes in, a volume out."""

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
"""The largest volume and its header."""
DTYPE = "float32"
"""In which volumes from files are taken: files of one run may each have a scale of their own."""


@dataclass(frozen=True, kw_only=True)
class VolumeFile:
    """What a file holds."""

    number: int
    """Its place in the series, as the scanner counts."""
    series: str
    """Letters and digits that no other series of the folder has."""
    series_name: str
    """For people, and for choosing."""
    voxels: NDArray[Any]
    """[x, y, z], to the right, front and up; C order, little endian."""
    affine: wire.Affine
    tr_s: float | None


class NotWholeError(WireError):
    """A file that lacks its end: it is still being written, or was cut off on its way."""

    def __init__(self, message: str) -> None:
        super().__init__("not-whole", message)


def check_shape(shape: tuple[int, ...]) -> None:
    """See that a volume has a size that the runtime takes. :raises WireError: code ``grid``."""
    is_good = len(shape) == 3 and all(1 <= edge <= 1_024 for edge in shape)
    if not is_good or math.prod(shape) * np.dtype(DTYPE).itemsize > wire.MAX_VOLUME_BYTES:
        raise WireError("grid", f"expected one volume of at most {wire.MAX_VOLUME_BYTES} bytes, got {shape}")


def placed(voxels: NDArray[Any], affine: NDArray[Any]) -> tuple[NDArray[Any], wire.Affine]:
    """Voxels as the runtime takes them, and their affine. :raises WireError: code ``grid``."""
    return to_ras(voxels.astype(DTYPE, copy=False), np.asarray(affine, dtype=np.float64))
