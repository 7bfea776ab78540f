"""Six numbers and a matrix say the same; and how far a head has moved, as one number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from realtime.errors import RegistrationError
from realtime.registration.displacement import framewise_displacement, rms_displacement
from realtime.registration.rigid import RigidParameters, as_rigid, inverse

MM = st.floats(-100, 100)
RAD = st.floats(-1.2, 1.2)
MOVES = st.builds(RigidParameters, MM, MM, MM, RAD, RAD, RAD)
CENTRES = st.tuples(MM, MM, MM)


@given(MOVES, CENTRES)
def test_matrix_and_parameters_say_the_same(
    move: RigidParameters, centre: tuple[float, float, float]
) -> None:
    matrix = move.matrix(centre)
    assert RigidParameters.of(matrix, centre) == pytest.approx(move, abs=1e-9)
    turned = Rotation.from_euler("xyz", move[3:]).apply(np.zeros(3) - centre) + centre + move[:3]
    np.testing.assert_allclose(matrix[:3, 3], turned, atol=1e-9)
    np.testing.assert_allclose(inverse(matrix) @ matrix, np.eye(4), atol=1e-9)


@pytest.mark.parametrize(
    ("move", "tissue", "lies_at"),
    [
        (RigidParameters(trans_z=3), (0, 0, 0), (0, 0, 3)),  # up
        (RigidParameters(rot_x=-math.pi / 2), (0, 0, 1), (0, 1, 0)),  # a nod: the top goes to the front
        (RigidParameters(rot_z=math.pi / 2), (0, 1, 0), (-1, 0, 0)),  # a turn to the left: so does the nose
        (RigidParameters(rot_y=math.pi / 2), (0, 0, 1), (1, 0, 0)),  # a tilt to the right: so does the top
    ],
)
def test_signs(move: RigidParameters, tissue: tuple[int, ...], lies_at: tuple[int, ...]) -> None:
    np.testing.assert_allclose(move.matrix() @ (*tissue, 1), (*lies_at, 1), atol=1e-12)


@pytest.mark.parametrize(
    "matrix",
    [
        np.diag([1.0, 1, 1.1, 1]),
        np.diag([-1.0, 1, 1, 1]),
        np.eye(3),
        np.full((4, 4), np.nan),
        np.eye(4)[[0, 1, 3, 2]],
        np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
    ids=["scales", "mirrors", "shape", "nan", "last row", "shears"],
)
def test_what_is_not_rigid_is_refused(matrix: np.ndarray) -> None:
    with pytest.raises(RegistrationError, match="expected a rigid transform"):
        as_rigid(matrix)


@given(MOVES)
def test_a_matrix_that_was_rounded_in_a_file_is_rigid_again(move: RigidParameters) -> None:
    found = as_rigid(np.round(move.matrix(), 4))
    np.testing.assert_allclose(inverse(found) @ found, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(found, move.matrix(), atol=2e-4)


@given(MOVES, MOVES)
def test_framewise_displacement_is_powers(before: RigidParameters, now: RigidParameters) -> None:
    apart = np.abs(np.subtract(now, before))
    expected = apart[:3].sum() + (apart[3:] * 50).sum()
    assert framewise_displacement(before, now) == pytest.approx(expected, abs=1e-9)
    assert framewise_displacement(now, now) == 0


@given(MOVES, MOVES, CENTRES)
def test_rms_displacement_is_the_mean_over_a_sphere(
    before: RigidParameters, now: RigidParameters, centre: tuple[float, float, float]
) -> None:
    """Jenkinson's integral over the ball, here over nodes whose second moments are the ball's."""
    ball = np.array([*np.eye(3), *-np.eye(3)]) * 80 * math.sqrt(3 / 5)
    first, second = before.matrix(), now.matrix()
    points = np.c_[ball, np.zeros(6)] + (*centre, 1)
    apart = points @ (second @ inverse(first) - np.eye(4)).T
    expected = math.sqrt((apart[:, :3] ** 2).sum(axis=1).mean())
    assert rms_displacement(first, second, centre) == pytest.approx(expected, abs=1e-8)
