"""How a session's head lies to the decoder's: found from afar on any grid, or refused and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from realtime.errors import RegistrationError
from realtime.registration.rigid import RigidParameters
from realtime.registration.session import SessionRegistration, register_session

from .heads import GRID, SIDE_MM, Head, Volume, apart_mm, grid_affine

HEAD, AFFINE = Head(1), grid_affine()
DECODERS = HEAD.volume(AFFINE, noise=10)
FAR = RigidParameters(17, -14, 18, 0.2, -0.17, 0.24).matrix()


def register(
    moving: Volume, affine: NDArray[np.float64] = AFFINE, initial: Any = None
) -> SessionRegistration:
    return register_session(moving, affine, DECODERS, AFFINE, initial)


def starts(n: int) -> list[RigidParameters]:
    rng = np.random.default_rng(4)
    ways = rng.standard_normal((n, 3))
    shifts = 30 * ways / np.linalg.norm(ways, axis=1)[:, None]
    return [
        RigidParameters(*s, *t) for s, t in zip(shifts, np.radians(rng.uniform(-15, 15, (n, 3))), strict=True)
    ]


@pytest.mark.parametrize("start", starts(5))
def test_a_head_is_found_from_afar(start: RigidParameters) -> None:
    moving = 0.7 * HEAD.volume(AFFINE, start.matrix(), noise=10, seed=1) + 20
    found = register(moving)
    assert apart_mm(found.matrix, start.matrix()) < 0.1
    assert found.parameters == pytest.approx(start, abs=0.1)
    assert found.similarity > 0.9


@pytest.mark.parametrize(
    ("side_mm", "shape", "turn"),
    [
        (3.4, (48, 58, 46), RigidParameters()),
        ((3.6, 3.6, 6.0), (48, 58, 30), RigidParameters()),
        ((-SIDE_MM, SIDE_MM, SIDE_MM), GRID, RigidParameters()),
        (SIDE_MM, GRID, RigidParameters(10, 5, -8, 0.4, 0.1, -0.2)),
    ],
    ids=["finer", "thick slices", "stored from right to left", "oblique"],
)
def test_a_session_may_have_a_grid_of_its_own(
    side_mm: Any, shape: tuple[int, int, int], turn: RigidParameters
) -> None:
    affine = turn.matrix() @ grid_affine(side_mm, shape)
    found = register(HEAD.volume(affine, FAR, shape, noise=10, seed=2), affine)
    assert apart_mm(found.matrix, FAR) < 0.1


def test_the_result_is_simpleitks() -> None:
    """An independent registration, started at ours, goes nowhere else."""
    moving = HEAD.volume(AFFINE, FAR, noise=10, seed=3)
    ours = register(moving).matrix
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetInterpolator(sitk.sitkBSpline3)
    method.SetOptimizerAsRegularStepGradientDescent(0.2, 1e-4, 60)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.2)
    transform = sitk.Euler3DTransform()
    lps = np.diag([-1.0, -1, 1, 1])
    start = lps @ ours @ lps
    transform.SetMatrix(start[:3, :3].ravel(), 1e-6)
    transform.SetTranslation(start[:3, 3])
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(_image(DECODERS), _image(moving))
    theirs = np.eye(4)
    theirs[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    theirs[:3, 3] = transform.TransformPoint((0, 0, 0))
    assert apart_mm(lps @ theirs @ lps, ours) < 0.15


def _image(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T))
    image.SetSpacing([SIDE_MM] * 3)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    image.SetOrigin(AFFINE[:3, 3] * (-1, -1, 1))
    return image


def test_coordinates_that_mean_nothing_need_an_initial_matrix() -> None:
    """A scanner that sends no positions, or takes the person's front for the back."""
    affine = RigidParameters(rot_z=2.8).matrix() @ AFFINE
    moving = HEAD.volume(AFFINE, noise=10, seed=4)
    with pytest.raises(RegistrationError, match="--initial"):
        register(moving, affine)
    near = RigidParameters(3, 2, -4, 0, 0.1, 2.7).matrix()
    found = register(moving, affine, initial=near)
    assert apart_mm(found.matrix, RigidParameters(rot_z=2.8).matrix()) < 0.1


def test_an_initial_matrix_that_is_not_rigid_is_refused() -> None:
    with pytest.raises(RegistrationError, match="rigid"):
        register(DECODERS, initial=np.diag([1.0, 1, 2, 1]))


def wrong() -> dict[str, Volume]:
    return {
        "another person": Head(2).volume(AFFINE, FAR, noise=10),
        "and another": Head(3).volume(AFFINE, noise=10),
        "half the head": HEAD.volume(AFFINE, RigidParameters(trans_z=75).matrix(), noise=10),
        "noise": np.random.default_rng(0).normal(500, 50, GRID).astype(np.float32),
        "a ball of water": np.where(np.linalg.norm(np.indices(GRID).T - 18, axis=-1).T < 15, 1000, 10).astype(
            np.float32
        ),
    }


@pytest.mark.parametrize("kind", wrong())
def test_what_is_not_the_decoders_head_is_refused(kind: str) -> None:
    with pytest.raises(RegistrationError, match="expected .*--initial"):
        register(wrong()[kind])


@pytest.mark.parametrize("value", [0, 700, np.nan, np.inf])
def test_a_volume_of_nothing_is_refused_by_its_name(value: float) -> None:
    nothing = np.full(GRID, value, np.float32)
    with pytest.raises(RegistrationError, match="session's reference volume: expected"):
        register(nothing)
    with pytest.raises(RegistrationError, match="decoder's reference volume: expected"):
        register_session(DECODERS, AFFINE, nothing, AFFINE)
