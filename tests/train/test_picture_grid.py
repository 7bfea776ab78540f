"""The picture of held-out trials has every picture in its place, and every row its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from train.evaluation.picture_grid import write_grid


@pytest.mark.parametrize("n_trials", [2, 5, 8])
@pytest.mark.parametrize("size", [(64, 64), (425, 425), (48, 64)])
def test_rows_are_named_and_hold_their_pictures_in_order(
    n_trials: int, size: tuple[int, int], tmp_path: Path
) -> None:
    """Each picture has one colour, and another size in the second row."""
    rng = np.random.default_rng(0)
    colours = rng.permutation(200)[: 2 * n_trials].reshape(2, n_trials) + 20
    rows = {
        "shown": np.stack([flat(colour, size) for colour in colours[0]]),
        "streaming": np.stack([flat(colour, (32, 32)) for colour in colours[1]]),
    }
    write_grid(tmp_path / "grid.png", rows)
    grid = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    half = (n_trials + 1) // 2
    for row in (colours[0, :half], colours[1, :half], colours[0, half:], colours[1, half:]):
        tops, lefts = [], []
        for colour in row.tolist():
            ys, xs = np.nonzero((grid == colour_of(colour)).all(axis=2))
            assert (int(np.ptp(ys)) + 1, int(np.ptp(xs)) + 1) == size
            assert len(ys) == size[0] * size[1], "it is whole"
            tops.append(ys.min())
            lefts.append(xs.min())
        assert len(set(tops)) == 1
        assert lefts == sorted(lefts)
        name = grid[tops[0] : tops[0] + size[0], : lefts[0]]
        assert name.min() < 100, "the row has a name"
        assert name[:, -1].min() == 255, "which does not reach its pictures"
    assert grid[:, 0].min() == 255, "no name is cut off"


def colour_of(colour: int) -> tuple[int, int, int]:
    """No grey, so that no letter has it."""
    return colour, 255 - colour, 0


def flat(colour: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.full((*size, 3), colour_of(colour), dtype=np.uint8)
