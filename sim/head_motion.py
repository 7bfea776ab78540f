"""Where the head lies in the scanner: its place in a session, and how it moves in a run.

Positions are in mm, in scanner coordinates (RAS+). Six parameters have BIDS' names and units: ``trans_x``,
``trans_y``, ``trans_z`` in mm, ``rot_x``, ``rot_y``, ``rot_z`` in rad. They move a position p to ::

    R (p - c) + c + (trans_x, trans_y, trans_z)    with    R = Rz(rot_z) Ry(rot_y) Rx(rot_x)

about a centre c, here that of the scanner's grid. Legend: T volumes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from sim.raw_settings import RawSettings

F64 = npt.NDArray[np.float64]

PARAMETERS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
LEVER_MM = 50.0
"""A turn counts as the arc that it makes at this distance from the centre."""

_SWALLOW_S = 3.0
_DRIFT_WAVES = 4
_IN_MM = np.array([1.0, 1.0, 1.0, LEVER_MM, LEVER_MM, LEVER_MM])
_NOD = np.array([0.1, 0.3, 1.0, 0.8, 0.05, 0.05])
"""A swallow: mostly up, and a nod about the axis from ear to ear."""


def rigid(parameters: npt.ArrayLike, centre_mm: npt.ArrayLike = (0, 0, 0)) -> F64:
    """Return the matrix ``[4, 4]`` of six parameters about a centre."""
    values, centre = np.asarray(parameters, dtype=np.float64), np.asarray(centre_mm, dtype=np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", values[3:]).as_matrix()
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + values[:3]
    return matrix


def draw_direction(rng: np.random.Generator) -> F64:
    """Draw a unit vector ``[3]``."""
    direction = rng.normal(size=3)
    return np.asarray(direction / np.linalg.norm(direction))


def draw_place(shift_mm: float, turn_deg: float, rng: np.random.Generator) -> F64:
    """Draw a rigid matrix ``[4, 4]`` of a shift and a turn of exactly these sizes, in random directions."""
    matrix = np.eye(4)
    turn = np.deg2rad(turn_deg) * draw_direction(rng)
    matrix[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    matrix[:3, 3] = shift_mm * draw_direction(rng)
    return matrix


def draw_motion(settings: RawSettings, n_volumes: int, rng: np.random.Generator) -> F64:
    """Draw the motion of a run, ``[T, 6]``, which begins with zeros.

    Slow drift, swallows (there and back) and jerks (there to stay) in random directions; the sum is scaled so
    that `farthest_mm` is the setting.
    """
    time_s: F64 = np.arange(n_volumes, dtype=np.float64) * np.float64(settings.tr_s)
    drift = _drift(time_s, rng)
    motion = drift / max(farthest_mm(drift), 1e-9)
    minutes = n_volumes * settings.tr_s / 60
    n_swallows = rng.poisson(settings.swallows_per_min * minutes)
    for begin_s in rng.uniform(0, time_s[-1] + settings.tr_s, n_swallows):
        phase = np.clip((time_s - begin_s) / _SWALLOW_S, 0, 1)
        size = settings.swallow_share * rng.uniform(0.5, 1)
        motion += size * np.sin(np.pi * phase)[:, None] * _NOD / _IN_MM
    for volume in rng.integers(1, max(n_volumes, 2), rng.poisson(settings.jerks_per_run)):
        parameters = np.concatenate([draw_direction(rng), draw_direction(rng) / LEVER_MM]) / np.sqrt(2)
        motion[volume:] += settings.jerk_share * parameters
    motion -= motion[0]
    return np.asarray(motion * settings.motion_mm / max(farthest_mm(motion), 1e-9))


def farthest_mm(motion: F64) -> float:
    """Return how far the head gets in ``motion`` ``[T, 6]``: the length of shift and arc together."""
    return float(np.linalg.norm(motion * _IN_MM, axis=1).max())


def _drift(time_s: F64, rng: np.random.Generator) -> F64:
    """Draw drift ``[T, 6]``: a line and slow waves, each in a random direction."""
    periods_s = rng.uniform(60, 400, _DRIFT_WAVES)
    phases = rng.uniform(0, 2 * np.pi, _DRIFT_WAVES)
    waves = np.sin(2 * np.pi * time_s[:, None] / periods_s + phases)
    courses = np.column_stack([2 * time_s / max(time_s[-1], 1.0), waves])
    drift = courses @ (rng.normal(size=(_DRIFT_WAVES + 1, 6)) / _IN_MM)
    return np.asarray(drift - drift[0])
