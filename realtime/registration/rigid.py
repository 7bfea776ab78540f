"""A rigid transform as six numbers and as a matrix.

The numbers have BIDS' names: ``trans_x``, ``trans_y``, ``trans_z`` in mm, ``rot_x``, ``rot_y``, ``rot_z`` in
rad, in scanner coordinates: x grows to the person's right, y to the front, z to the top. They say how the
head has moved: tissue at the position p of the reference lies in the volume at ::

    R (p - c) + c + (trans_x, trans_y, trans_z)    with    R = Rz(rot_z) Ry(rot_y) Rx(rot_x)

about the centre c. Each rotation is counter-clockwise seen from the positive end of its axis, and the one
about x is the first that is applied. So a nod to the front has a negative ``rot_x``, and a turn to the left a
positive ``rot_z``. SPM, FSL and AFNI differ from this and from each other in order, in signs and in the
centre.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from realtime.errors import RegistrationError

Floats = NDArray[np.floating[Any]]
Matrix = NDArray[np.float64]

_RIGID_WITHIN = 1e-3
"""How far a matrix's axes may be from unit length and right angles: an affine that was rounded in a file."""


class RigidParameters(NamedTuple):
    """How far a head has moved: mm and rad."""

    trans_x: float = 0.0
    trans_y: float = 0.0
    trans_z: float = 0.0
    rot_x: float = 0.0
    rot_y: float = 0.0
    rot_z: float = 0.0

    def matrix(self, centre_mm: ArrayLike = (0, 0, 0)) -> Matrix:
        """Return the transform as a matrix [4, 4]."""
        centre = np.asarray(centre_mm, float)
        rotation = _rotation(self.rot_x, self.rot_y, self.rot_z)
        moved = np.eye(4)
        moved[:3, :3] = rotation
        moved[:3, 3] = centre - rotation @ centre + self[:3]
        return moved

    @classmethod
    def of(cls, matrix: ArrayLike, centre_mm: ArrayLike = (0, 0, 0)) -> RigidParameters:
        """Return the numbers of a rigid matrix [4, 4]."""
        moved, centre = as_rigid(matrix), np.asarray(centre_mm, float)
        rotation = moved[:3, :3]
        shift = moved[:3, 3] + rotation @ centre - centre
        x, y, z = (float(value) for value in shift)
        return cls(
            x,
            y,
            z,
            math.atan2(rotation[2, 1], rotation[2, 2]),
            -math.asin(min(1.0, max(-1.0, rotation[2, 0]))),
            math.atan2(rotation[1, 0], rotation[0, 0]),
        )


def as_rigid(matrix: ArrayLike) -> Matrix:
    """Return a matrix [4, 4], its turn made exact, or raise where it does more than turn and shift."""
    moved = np.array(matrix, float)
    ok = moved.shape == (4, 4) and np.isfinite(moved).all() and np.array_equal(moved[3], (0, 0, 0, 1))
    if not ok or not _turns_only(moved[:3, :3]):
        raise RegistrationError(
            "expected a rigid transform: a matrix [4, 4] in mm that turns and shifts, and neither scales, "
            f"shears nor mirrors, with 0 0 0 1 as its last row; got {moved.tolist()}"
        )
    left, _, right = np.linalg.svd(moved[:3, :3])
    moved[:3, :3] = left @ right
    return moved


def inverse(matrix: Matrix) -> Matrix:
    """Return the inverse of a rigid matrix."""
    back = np.eye(4)
    back[:3, :3] = matrix[:3, :3].T
    back[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return back


def _turns_only(rotation: Matrix) -> bool:
    orthogonal = np.abs(rotation @ rotation.T - np.eye(3)).max() <= _RIGID_WITHIN
    return bool(orthogonal and np.linalg.det(rotation) > 0)


def _rotation(x: float, y: float, z: float) -> Matrix:
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(angle), math.sin(angle)) for angle in (x, y, z))
    return np.array(
        [
            [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
            [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
            [-sy, cy * sx, cy * cx],
        ]
    )
