"""From a synthetic subject's files to a checkpoint and a table: the real way, small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

from nsd import Layout, RunKey, Stimuli, read_expdesign, run_trials
from train.__main__ import main
from train.base import load_vae
from train.cache import Prior, prepare
from train.dynadiff import load_checkpoint, merged_unet, read_info
from train.errors import TrainError
from train.evaluate import decode_windows, evaluate
from train.fit import encode_stimuli, fit_subject, trials_to_train_on
from train.pretrain import base_pictures, encode_latents
from train.recipe import Recipe, read_recipe
from train.windows import run_windows


def test_a_checkpoint_reads_back_and_decodes(tiny_checkpoint: Path, tiny_nsd: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    assert checkpoint.info.subject == 1
    assert checkpoint.info.n_voxels == 100
    key = RunKey(*checkpoint.info.held_out_runs[0])
    prior = Prior.load(tiny_checkpoint / "prior.npz")
    windows = run_windows(
        Layout(tiny_nsd), key, checkpoint.recipe.window, checkpoint.recipe.preprocessing, prior
    )
    first = decode_windows(checkpoint, windows["whole_run"][:3], seed=1, name="test")
    again = decode_windows(checkpoint, windows["whole_run"][:3], seed=1, name="test")
    assert first.shape == (3, 64, 64, 3)
    assert np.array_equal(first, again)
    other_seed = decode_windows(checkpoint, windows["whole_run"][:3], seed=2, name="test")
    assert not np.array_equal(first, other_seed)


def test_merging_lora_leaves_the_function_as_it_was(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    adapter = [p for name, p in checkpoint.unet.named_parameters() if "lora_B" in name]
    assert any(p.abs().max() > 0 for p in adapter), "the adapter learned nothing"
    merged = merged_unet(checkpoint)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    size = checkpoint.unet.config.sample_size
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, checkpoint.unet.config.in_channels, size, size, generator=generator)
    tokens = torch.randn(2, *checkpoint.null_NW.shape, generator=generator)
    timesteps = torch.tensor([10, 900])
    with torch.no_grad():
        torch.testing.assert_close(
            merged(latents, timesteps, tokens).sample,
            checkpoint.unet(latents, timesteps, tokens).sample,
            rtol=1e-4,
            atol=1e-5,
        )


def test_no_picture_of_a_held_out_run_is_trained_on(
    tiny_checkpoint: Path, tiny_nsd: Path, tiny_recipe: Recipe
) -> None:
    info = read_info(tiny_checkpoint)
    test_keys = [RunKey(*key) for key in info.held_out_runs]
    cache = prepare(tiny_nsd, 1, tiny_recipe, tiny_checkpoint / "cache")
    assert sorted([*cache.train_runs, *test_keys]) == cache.runs
    chosen = trials_to_train_on(cache)
    assert len(chosen) == info.n_train_trials
    trained = [cache.trials[index] for index in chosen]
    assert not {item.run for item in trained} & set(test_keys)
    held_out = {item.trial.image for item in run_trials(Layout(tiny_nsd), test_keys)}
    assert not held_out & {item.trial.image for item in trained}


def test_windows_are_the_volumes_after_their_onset(
    tiny_checkpoint: Path, tiny_nsd: Path, tiny_recipe: Recipe
) -> None:
    layout, key = Layout(tiny_nsd), RunKey(1, 1, 1)
    prior = Prior.load(tiny_checkpoint / "prior.npz")
    later = tiny_recipe.window.__class__(offset_volumes=4, length_volumes=6)
    here = run_windows(layout, key, tiny_recipe.window, tiny_recipe.preprocessing, prior)
    shifted = run_windows(layout, key, later, tiny_recipe.preprocessing, prior)
    assert here["whole_run"].shape[1:] == (100, 6)
    # one volume later in the same rows of the whole run
    assert np.array_equal(here["whole_run"][..., 1:], shifted["whole_run"][..., :-1])
    # late in a run the streamed fit has almost all that the whole run's has
    difference = np.abs(here["causal"][-1].astype(float) - here["whole_run"][-1].astype(float))
    assert np.median(difference) < 0.2


def test_pictures_of_another_size_are_brought_to_the_base_models(tiny_base: Path, tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.stimuli().parent.mkdir(parents=True)
    colours = np.array([[200, 30, 90], [10, 220, 60]], dtype=np.uint8)
    with h5py.File(layout.stimuli(), "w") as file:
        file["imgBrick"] = np.broadcast_to(colours[:, None, None], (2, 85, 85, 3))
    vae = load_vae(tiny_base)
    with Stimuli(layout) as stimuli:
        latents = encode_stimuli(stimuli, [1, 0], vae, 8)
    expected = encode_latents(vae, np.broadcast_to(colours[::-1, None, None], (2, 64, 64, 3)).copy())
    torch.testing.assert_close(latents, expected)


def test_base_pictures_are_none_that_the_subject_is_shown(tiny_nsd: Path) -> None:
    seen = read_expdesign(Layout(tiny_nsd)).subject_images[0]
    with Stimuli(Layout(tiny_nsd)) as stimuli:
        unseen = np.setdiff1d(np.arange(len(stimuli)), seen)
        drawn = np.sort(np.random.default_rng(1).choice(unseen, 5, replace=False))
        expected = stimuli.images(drawn.tolist())
    assert np.array_equal(base_pictures(tiny_nsd, 1, 5, seed=1), expected)
    with pytest.raises(TrainError, match="expected 73000 stimuli"):
        base_pictures(tiny_nsd, 1, 73_000, seed=1)


def test_evaluation_writes_table_and_grid(tiny_checkpoint: Path, tiny_nsd: Path, tmp_path: Path) -> None:
    rows = evaluate(tiny_nsd, tiny_checkpoint, tmp_path, max_trials=32)
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["rows"].keys() == rows.keys() == {"offline", "streaming", "ceiling", "floor"}
    for row in table["rows"].values():
        for kind in ("pixels", "hog", "efficientnet_lite0"):
            assert 0 <= row[kind]["low"] <= row[kind]["value"] <= row[kind]["high"] <= 1
            assert row[kind]["n_trials"] == 32
    grid = cv2.imread(str(tmp_path / "grid.png"))
    assert grid is not None
    assert grid.shape == (2 * 4 * 64 + 8, 16 * 64, 3)


def test_errors_say_what_was_expected(
    tiny_nsd: Path,
    tiny_recipe: Recipe,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(TrainError, match="a base model is a folder"):
        fit_subject(tiny_nsd, 1, tiny_recipe, tmp_path, tmp_path / "out", seed=1)
    with pytest.raises(TrainError, match=r"expected .*checkpoint\.json, found no file"):
        load_checkpoint(tmp_path)
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, damaged, ignore=shutil.ignore_patterns("cache", "training"))
    (damaged / "brain.safetensors").unlink()
    with pytest.raises(TrainError, match="expected .*brain.safetensors"):
        load_checkpoint(damaged)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[base]\nkind = 'demo'\nlatent_channels = 0\n")
    with pytest.raises(TrainError, match="latent_channels"):
        read_recipe(recipe)
    arguments = ["evaluate", "--nsd", str(tiny_nsd), "--checkpoint", str(tmp_path), "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "checkpoint.json" in capsys.readouterr().err
