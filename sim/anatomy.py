"""The simulated brain's anatomy, and smooth patterns over its voxels.

The brain is an ellipsoid that fills the grid; the cortex is its outer shell. The ROI consists of the rearmost
voxels of that shell, where visual cortex lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.errors import SimError
from sim.settings import CortexSettings

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """``labels`` int16 ``[x, y, z]`` in nsdgeneral's code: 1 in the ROI, 0 other cortex, -1 outside cortex.

    ``brain`` bool ``[x, y, z]``; ``affine`` float64 ``[4, 4]``; ``positions`` float32 ``[V, 3]``: positions
    of the ROI's voxels in C order of the grid, each axis from -1 to 1.
    """

    labels: npt.NDArray[np.int16]
    brain: npt.NDArray[np.bool_]
    affine: npt.NDArray[np.float64]
    positions: F32

    @property
    def roi(self) -> npt.NDArray[np.bool_]:
        """Mask of the ROI."""
        return self.labels > 0


def build_anatomy(settings: CortexSettings) -> Anatomy:
    """Build the anatomy, which depends on the settings only; all subjects share it.

    :raises SimError: when the shell has fewer voxels than the ROI
    """
    grid = np.array(settings.grid)
    axes = [(np.arange(n) - (n - 1) / 2) / (n / 2) for n in settings.grid]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    brain = radius <= 1
    shell = brain & (radius > 1 - settings.shell_voxels / (grid.min() / 2))
    candidates = np.flatnonzero(shell)
    if candidates.size < settings.n_roi_voxels:
        raise SimError(
            f"cortex settings: expected a shell with at least {settings.n_roi_voxels} voxels, "
            f"found {candidates.size}; enlarge grid or shell_voxels, or lower n_roi_voxels"
        )
    hindmost = candidates[np.argsort(y.ravel()[candidates], kind="stable")[: settings.n_roi_voxels]]
    labels = np.where(shell, 0, -1).astype(np.int16)
    labels.ravel()[hindmost] = 1
    roi = labels > 0
    positions = np.stack([x[roi], y[roi], z[roi]], axis=1).astype(np.float32)
    return Anatomy(labels=labels, brain=brain, affine=_affine(settings), positions=positions)


def _affine(settings: CortexSettings) -> npt.NDArray[np.float64]:
    """Return the affine of isotropic voxels with the grid's centre at the origin."""
    affine = np.diag([settings.voxel_mm] * 3 + [1.0])
    affine[:3, 3] = -settings.voxel_mm * (np.array(settings.grid) - 1) / 2
    return affine


def smooth_patterns(positions: F32, n_patterns: int, rng: np.random.Generator) -> F32:
    """Draw random smooth patterns over the ROI, float32 ``[n_patterns, V]``, mean 0 and SD 1 each.

    Each is a sum of plane waves of random direction and phase with about one period across the brain.
    """
    directions = rng.normal(0, 2.5, (n_patterns, 4, 3))
    phases = rng.uniform(0, 2 * np.pi, (n_patterns, 4, 1))
    fields = np.cos(directions @ positions.T + phases).sum(axis=1)
    fields -= fields.mean(axis=1, keepdims=True)
    return np.asarray(fields / fields.std(axis=1, keepdims=True), dtype=np.float32)
