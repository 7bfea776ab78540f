"""Betas that do not fit the presentations on disk."""

from __future__ import annotations

from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest

from nsd import BadFile, read_roi
from train.data.cache import prepare
from train.recipe import Recipe

from .conftest import link_runs


def test_the_file_that_was_read_is_named(tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    layout, replace = link_runs(tiny_nsd, tmp_path / "nsd", (1, 1), (1, 2)), msgspec.structs.replace
    path = layout.betas(1, 1, "hdf5")
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:  # of all twelve runs
        file.create_dataset("betas", (750, *read_roi(layout, 1).mask.shape[::-1]), np.int16)
    recipe = replace(
        tiny_recipe,
        preprocessing=replace(tiny_recipe.preprocessing, train_on=("betas",)),
        window=replace(tiny_recipe.window, offset_volumes=0, length_volumes=1),
    )
    with pytest.raises(BadFile, match=rf"{path}: expected as many betas"):
        prepare(layout.root, 1, recipe, tmp_path / "cache")
