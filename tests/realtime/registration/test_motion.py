"""What the tracker promises: where the head is in every volume, to hundredths of a mm, or a clear refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from realtime.errors import RegistrationError
from realtime.registration.motion import MotionTracker
from realtime.registration.rigid import RigidParameters

from .heads import GRID, SIDE_MM, Head, apart_mm, grid_affine

HEAD, AFFINE = Head(1), grid_affine()
MOVE = RigidParameters(2, -1.5, 1, 0.03, -0.02, 0.04)


@pytest.fixture(scope="module")
def tracker() -> MotionTracker:
    return MotionTracker(HEAD.volume(AFFINE, noise=10), AFFINE)


def moves(n: int, mm: float, deg: float) -> list[RigidParameters]:
    rng = np.random.default_rng(2)
    return [
        RigidParameters(*rng.uniform(-mm, mm, 3), *np.radians(rng.uniform(-deg, deg, 3))) for _ in range(n)
    ]


@pytest.mark.parametrize("move", moves(6, 5, 5))
def test_a_move_is_found_under_noise_and_another_gain(tracker: MotionTracker, move: RigidParameters) -> None:
    true = move.matrix(tracker.centre_mm)
    volume = 1.1 * HEAD.volume(AFFINE, true, noise=10, seed=3) + 5
    found = tracker.estimate(volume, AFFINE)
    assert apart_mm(found.matrix, true) < 0.03
    assert found.parameters == pytest.approx(move, abs=0.03)
    assert found.similarity > 0.99
    again = tracker.estimate(volume, AFFINE, start=found)
    assert apart_mm(again.matrix, found.matrix) < 0.01
    assert again.iterations <= found.iterations


@pytest.mark.parametrize(
    ("side_mm", "shape", "turn"),
    [
        (SIDE_MM, GRID, RigidParameters(6, -4, 5, 0.2, -0.1, 0.15)),
        ((3.2, 3.2, 5.0), (52, 62, 32), RigidParameters()),
        ((-SIDE_MM, SIDE_MM, SIDE_MM), GRID, RigidParameters()),
    ],
    ids=["oblique, moved slices", "other matrix and voxels", "stored from right to left"],
)
def test_a_volume_may_have_a_grid_of_its_own(
    tracker: MotionTracker, side_mm: object, shape: tuple[int, int, int], turn: RigidParameters
) -> None:
    affine = turn.matrix() @ grid_affine(side_mm, shape)
    found = tracker.estimate(HEAD.volume(affine, MOVE.matrix(), shape, noise=10), affine)
    assert apart_mm(found.matrix, MOVE.matrix()) < 0.05


def test_what_does_not_fit_counts_less(tracker: MotionTracker) -> None:
    """A bright hand beside the head, and a slice that is dark."""
    volume = HEAD.volume(AFFINE, MOVE.matrix(), noise=10, seed=4)
    volume[2:7, 16:32, 10:24] = 3000
    volume[:, :, 16] *= 0.3
    assert apart_mm(tracker.estimate(volume, AFFINE).matrix, MOVE.matrix()) < 0.1


def test_some_voxels_may_be_no_numbers(tracker: MotionTracker) -> None:
    volume = HEAD.volume(AFFINE, MOVE.matrix(), noise=10, seed=5)
    volume[np.random.default_rng(0).random(GRID) < 0.01] = np.nan
    volume[10, 10] = np.inf
    assert apart_mm(tracker.estimate(volume, AFFINE).matrix, MOVE.matrix()) < 0.05


def test_all_outside_the_head_may_be_no_numbers(tracker: MotionTracker) -> None:
    volume = HEAD.volume(AFFINE, MOVE.matrix(), noise=10, seed=5)
    volume[HEAD.volume(AFFINE, MOVE.matrix()) < 100] = np.nan
    assert np.isnan(volume).mean() > 0.5
    assert apart_mm(tracker.estimate(volume, AFFINE).matrix, MOVE.matrix()) < 0.2


def test_a_start_that_leads_nowhere_does_no_harm(tracker: MotionTracker) -> None:
    volume = HEAD.volume(AFFINE, MOVE.matrix(), noise=10, seed=6)
    right = tracker.estimate(volume, AFFINE)
    lost = right._replace(matrix=RigidParameters(90, 0, 0, 0, 0, 1.5).matrix())
    assert apart_mm(tracker.estimate(volume, AFFINE, start=lost).matrix, MOVE.matrix()) < 0.03


def no_head() -> dict[str, NDArray[np.float32]]:
    one = np.zeros(GRID, np.float32)
    one[18, 18, 18] = 1000
    return {
        "zero": np.zeros(GRID, np.float32),
        "constant": np.full(GRID, 700, np.float32),
        "nan": np.full(GRID, np.nan, np.float32),
        "mostly inf": np.where(np.arange(GRID[2]) < 30, np.inf, 700 + np.zeros(GRID)).astype(np.float32),
        "noise": np.random.default_rng(0).normal(500, 50, GRID).astype(np.float32),
        "one voxel": one,
        "slice": np.zeros((40, 40), np.float32),
        "half outside": HEAD.volume(AFFINE, RigidParameters(trans_z=90).matrix(), noise=10),
    }


@pytest.mark.parametrize("kind", no_head())
def test_a_volume_without_the_head_is_refused(tracker: MotionTracker, kind: str) -> None:
    with pytest.raises(RegistrationError, match="expected"):
        tracker.estimate(no_head()[kind], AFFINE)


@pytest.mark.parametrize("kind", ["zero", "constant", "nan", "mostly inf", "one voxel", "slice"])
def test_a_reference_without_a_head_is_refused(kind: str) -> None:
    with pytest.raises(RegistrationError, match="expected"):
        MotionTracker(no_head()[kind], AFFINE)


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan)], ids=["zero", "nan"])
def test_an_affine_that_is_none_is_refused(tracker: MotionTracker, affine: NDArray[np.float64]) -> None:
    with pytest.raises(RegistrationError, match="affine"):
        tracker.estimate(HEAD.volume(AFFINE), affine)


ESTIMATE = """
import sys
import numpy as np
from realtime.registration.motion import MotionTracker
reference, volume, affine = np.load(sys.argv[1]).values()
found = MotionTracker(reference, affine).estimate(volume, affine)
sys.stdout.write(found.matrix.tobytes().hex() + repr(found.similarity))
"""


def test_the_number_of_threads_changes_no_bit(tmp_path: Path) -> None:
    """Replays are compared bit for bit, also on a machine with other cores."""
    volumes = HEAD.volume(AFFINE, noise=10), HEAD.volume(AFFINE, MOVE.matrix(), noise=10, seed=7)
    np.savez(tmp_path / "volumes.npz", *volumes, AFFINE)
    command = [sys.executable, "-c", ESTIMATE, str(tmp_path / "volumes.npz")]
    texts = {
        subprocess.run(
            command,
            env=os.environ | {"OPENBLAS_NUM_THREADS": n, "OMP_NUM_THREADS": n},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for n in ("1", "4")
    }
    assert len(texts) == 1
    assert len(texts.pop()) > 256
