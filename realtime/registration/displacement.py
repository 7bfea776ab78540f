"""How far a head has moved from one volume to the next, as one number."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from realtime.registration.rigid import Matrix, RigidParameters, inverse

FD_RADIUS_MM = 50.0
"""Power's sphere: a turn counts as the arc that it makes there."""
RMS_RADIUS_MM = 80.0
"""Jenkinson's sphere, as in FSL."""


def framewise_displacement(before: RigidParameters, now: RigidParameters) -> float:
    """Return the sum of the absolute differences of six parameters in mm, turns as arcs.

    Power et al. 2012, "Spurious but systematic correlations in functional connectivity MRI networks arise
    from subject motion".
    """
    weights = (1, 1, 1, FD_RADIUS_MM, FD_RADIUS_MM, FD_RADIUS_MM)
    return sum(w * abs(b - a) for w, a, b in zip(weights, before, now, strict=True))


def rms_displacement(before: Matrix, now: Matrix, centre_mm: ArrayLike) -> float:
    """Return the RMS over a sphere about a centre, in mm, of how far its points move between two transforms.

    Jenkinson 1999, "Measuring transformation error by RMS deviation" (FMRIB technical report TR99MJ1); with
    the transform of the volume before, FSL's relative RMS, with the identity its absolute one.
    """
    apart = now @ inverse(before) - np.eye(4)
    turn, shift = apart[:3, :3], apart[:3, :3] @ np.asarray(centre_mm, float) + apart[:3, 3]
    return math.sqrt(RMS_RADIUS_MM**2 / 5 * float(np.sum(turn**2)) + float(np.sum(shift**2)))
