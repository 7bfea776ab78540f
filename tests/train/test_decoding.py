from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nsd import Layout, Stimuli
from train.checkpoints.checkpoint import load_checkpoint
from train.data.cache import prepare, subject_cache
from train.errors import TrainError
from train.evaluation.held_out import held_out_windows


def test_held_out_windows_are_the_runtimes_with_what_was_shown(
    tiny_checkpoint: Path, tiny_nsd: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    windows, shown = held_out_windows(checkpoint, tiny_nsd, tmp_path, 7, seed=1)
    assert windows.shape == (7, checkpoint.subject.n_voxels, checkpoint.recipe.window.length_volumes)
    assert np.isfinite(windows).all()
    folder = subject_cache(tmp_path, 1)
    cache = prepare(tiny_nsd, 1, checkpoint.recipe, folder, seed=checkpoint.info.seed)
    with Stimuli(Layout(tiny_nsd)) as stimuli:
        held_out = stimuli.images(np.unique(cache.images[cache.is_test]).tolist())
    assert {picture.tobytes() for picture in shown} <= {picture.tobytes() for picture in held_out}
    again, _ = held_out_windows(checkpoint, tiny_nsd, tmp_path, 7, seed=2)
    assert not np.array_equal(windows, again), "the seed draws them"


def test_recordings_that_are_not_there(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError):
        held_out_windows(load_checkpoint(tiny_checkpoint), tmp_path / "none", tmp_path / "cache", 7, seed=1)
