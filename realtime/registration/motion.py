"""Where the head is in each volume, as compared with a reference volume of the session. Pure.

The fit (:mod:`realtime.registration.align`) runs twice: at a few points of coarse copies of both volumes,
which finds a head that has moved far, then at many points of fine ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from realtime.errors import RegistrationError
from realtime.registration.align import Fit, Template, head
from realtime.registration.rigid import Floats, Matrix, RigidParameters
from realtime.registration.splines import Volume, blurred, with_contrast

SD_VOXELS = 0.8
"""Smoothing of the fine copies."""
COARSE_SD_VOXELS = 2.0
N_COARSE, N_FINE = 2_500, 12_000
"""Points."""
COARSE_UNTIL_MM, FINE_UNTIL_MM = 0.1, 0.02
LEAST_SIMILARITY, LEAST_OVERLAP = 0.7, 0.5
"""Below, a volume does not show the reference's head."""
SURE_SIMILARITY = 0.9
"""Below, the search is repeated from the reference's position."""


class Motion(NamedTuple):
    """How the head lies in a volume."""

    matrix: Matrix
    """[4, 4], from positions in the reference to those in the volume, in mm."""
    parameters: RigidParameters
    """The same, about the centre of the reference's grid."""
    iterations: int
    similarity: float
    """Correlation of the volume with the reference, at most 1."""


class MotionTracker:
    """Finds how the head has moved since a reference volume."""

    def __init__(self, reference: Floats, affine: Matrix) -> None:
        volume, affine = with_contrast(reference), np.asarray(affine, float)
        self.centre_mm = affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2) + affine[:3, 3]
        """[3], the centre of the reference's grid."""
        fine = blurred(volume, SD_VOXELS)
        self._fine = Template(fine, affine, head(fine), self.centre_mm, N_FINE)
        coarse, coarse_affine = _halved(fine, affine)
        self._coarse = Template(coarse, coarse_affine, head(coarse), self.centre_mm, N_COARSE)

    def estimate(self, volume: Floats, affine: Matrix, start: Motion | None = None) -> Motion:
        """Return how the head lies in a volume [x, y, z].

        The search starts from the motion of an earlier volume, and from the reference's position where that
        leads nowhere. Raises :class:`RegistrationError` where the volume does not show the reference's head.
        """
        fine, affine = blurred(with_contrast(volume), SD_VOXELS), np.asarray(affine, float)
        found = [self._fit(fine, affine, np.eye(4) if start is None else start.matrix)]
        if start is not None and found[0][0].similarity < SURE_SIMILARITY:
            found.append(self._fit(fine, affine, np.eye(4)))
        fit, iterations = max(found, key=lambda one: one[0].similarity)
        if fit.similarity < LEAST_SIMILARITY or fit.overlap < LEAST_OVERLAP:
            raise RegistrationError(
                "this volume does not show the head of the session's reference volume: expected a similarity "
                f"of at least {LEAST_SIMILARITY}, got {fit.similarity:.2f}; expected at least "
                f"{LEAST_OVERLAP:.0%} of the head in the field of view, got {fit.overlap:.0%}; look at the "
                "images, and whether the person still lies in the coil"
            )
        parameters = RigidParameters.of(fit.matrix, self.centre_mm)
        return Motion(fit.matrix, parameters, iterations, fit.similarity)

    def _fit(self, fine: Volume, affine: Matrix, start: Matrix) -> tuple[Fit, int]:
        near = self._coarse.fit(*_halved(fine, affine), start, COARSE_UNTIL_MM)
        fit = self._fine.fit(fine, affine, near.matrix, FINE_UNTIL_MM)
        return fit, near.steps + fit.steps


def _halved(volume: Volume, affine: Matrix) -> tuple[Volume, Matrix]:
    """Return every second voxel of a smoothed volume, and the affine of these."""
    steps = [2 if n >= 16 else 1 for n in volume.shape]
    scaled = affine @ np.diag([*steps, 1.0])
    return np.ascontiguousarray(volume[:: steps[0], :: steps[1], :: steps[2]]), scaled
