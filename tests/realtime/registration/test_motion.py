"""What the tracker promises: where the head is, in every volume, to a few hundredths of a mm."""

from __future__ import annotations

import numpy as np
import pytest

from realtime.registration.motion import MotionTracker
from realtime.registration.rigid import RigidParameters

from .heads import Head, apart_mm, grid_affine

HEAD, AFFINE = Head(1), grid_affine()


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
    assert apart_mm(found.matrix, true) < 0.05
    assert found.parameters == pytest.approx(move, abs=0.05)
    assert found.similarity > 0.99
    again = tracker.estimate(volume, AFFINE, start=found)
    assert apart_mm(again.matrix, found.matrix) < 0.02
    assert again.iterations <= found.iterations
