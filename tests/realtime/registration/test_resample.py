"""A volume's values at the region: one interpolation, the right positions, and NaN where there is nothing."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from nilearn.image import resample_img

from realtime.errors import RegistrationError
from realtime.registration.resample import RegionSampler
from realtime.registration.rigid import RigidParameters

from .heads import GRID, SIDE_MM, Head, grid_affine

HEAD, AFFINE = Head(1), grid_affine()
MOVE = RigidParameters(4, -3, 2, 0.1, -0.05, 0.08).matrix()


def positions(shape: tuple[int, int, int] = GRID) -> np.ndarray:
    """Of every voxel of the decoder's grid [V, 3], in C order."""
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3)
    affine = grid_affine(shape=shape)
    return np.asarray(voxels @ affine[:3, :3].T + affine[:3, 3])


def test_at_its_own_voxels_a_volume_is_itself() -> None:
    volume = HEAD.volume(AFFINE, noise=20)
    values = RegionSampler(positions()).sample(volume, AFFINE, np.eye(4))
    np.testing.assert_allclose(values, volume.ravel(), atol=2e-3)


@pytest.mark.parametrize(
    ("side_mm", "shape", "turn"),
    [
        (SIDE_MM, GRID, RigidParameters()),
        ((3.2, 3.2, 5.0), (52, 62, 32), RigidParameters()),
        (SIDE_MM, GRID, RigidParameters(6, -4, 5, 0.2, -0.1, 0.15)),
        ((-SIDE_MM, SIDE_MM, SIDE_MM), GRID, RigidParameters()),
    ],
    ids=["the decoder's grid", "another matrix", "oblique", "stored from right to left"],
)
def test_it_equals_nilearn(side_mm: object, shape: tuple[int, int, int], turn: RigidParameters) -> None:
    affine = turn.matrix() @ grid_affine(side_mm, shape)
    volume = HEAD.volume(affine, MOVE, shape, noise=20)
    ours = RegionSampler(positions()).sample(volume, affine, MOVE).reshape(GRID)
    moved_back = nibabel.Nifti1Image(volume, np.linalg.inv(MOVE) @ affine)
    theirs = resample_img(
        moved_back,
        AFFINE,
        GRID,
        interpolation="continuous",
        force_resample=True,
        copy_header=True,
        clip=False,
    ).get_fdata()
    inside = np.zeros(GRID, dtype=bool)
    inside[12:-12, 12:-12, 12:-12] = True  # away from the edge, where it pads with zeros
    assert np.isfinite(ours[inside]).all()
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=0.5)
    truth = HEAD.volume(AFFINE)
    assert np.corrcoef(ours[inside], truth[inside])[0, 1] > 0.97


def test_what_left_the_field_of_view_is_nan() -> None:
    volume = HEAD.volume(AFFINE)
    up = RigidParameters(trans_z=2 * SIDE_MM).matrix()  # tissue lies two voxels higher than in the reference
    values = RegionSampler(positions()).sample(volume, AFFINE, up).reshape(GRID)
    assert np.isnan(values[:, :, -2:]).all()
    np.testing.assert_allclose(values[:, :, :-2], volume[:, :, 2:], atol=2e-3)


def test_the_field_of_view_ends_half_a_voxel_beyond_the_last_centre() -> None:
    volume = HEAD.volume(AFFINE)
    for share, is_seen in ((0.49, True), (0.51, False)):
        beyond = RigidParameters(trans_x=share * SIDE_MM).matrix()
        values = RegionSampler(positions()).sample(volume, AFFINE, beyond).reshape(GRID)
        assert np.isfinite(values[-1]).all() == is_seen


def test_voxels_that_are_no_numbers_spoil_their_neighbours_only() -> None:
    volume = HEAD.volume(AFFINE)
    broken = volume.copy()
    broken[20, 20, 20], broken[25, 25, 25] = np.nan, np.inf
    half = RigidParameters(trans_x=SIDE_MM / 2).matrix()  # between two voxels
    sampler = RegionSampler(positions())
    values, whole = (sampler.sample(one, AFFINE, half).reshape(GRID) for one in (broken, volume))
    assert {tuple(voxel) for voxel in np.argwhere(np.isnan(values) & np.isfinite(whole)).tolist()} == {
        (19, 20, 20),
        (20, 20, 20),
        (24, 25, 25),
        (25, 25, 25),
    }
    seen = np.isfinite(values)
    np.testing.assert_allclose(values[seen], whole[seen], atol=20)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_volume_of_no_numbers_is_refused(value: float) -> None:
    with pytest.raises(RegistrationError, match="not finite"):
        RegionSampler(positions()).sample(np.full(GRID, value), AFFINE, np.eye(4))


def test_a_constant_volume_is_constant() -> None:
    values = RegionSampler(positions()).sample(np.full(GRID, 7, np.int16), AFFINE, np.eye(4))
    np.testing.assert_allclose(values, 7, rtol=1e-6)
