"""Mean and SD of the region's voxels: the prior of a bundle, and what one run leaves to the next.

Legend: V voxels of the region.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from realtime.bundle import files


@dataclass(frozen=True, kw_only=True, eq=False)
class VoxelStatistics:
    """Of every voxel of the region, [V]."""

    mean: NDArray[np.float32]
    sd: NDArray[np.float32]
    """Over time, after detrending."""

    @classmethod
    def read(cls, path: Path, n_voxels: int) -> VoxelStatistics:
        """Read an ``.npz`` with the arrays ``mean`` and ``sd``.

        :raises BundleError: when it is damaged or of another region
        """
        return cls(**files.read_npz(path, {"mean": (n_voxels,), "sd": (n_voxels,)}))

    def as_npz(self) -> bytes:
        """The content of such a file."""
        file = io.BytesIO()
        np.savez(file, mean=self.mean.astype("<f4"), sd=self.sd.astype("<f4"))
        return file.getvalue()
