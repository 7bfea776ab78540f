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

from nsd import Layout, RunKey, Stimuli, read_expdesign, run_trials, runs
from train.__main__ import main
from train.base import load_vae
from train.cache import prepare, subject_cache
from train.checkpoint import load_checkpoint, merged_unet, read_info
from train.dataset import averaged_windows
from train.decoding import decode_windows, held_out_groups
from train.errors import TrainError
from train.evaluate import Evaluation, evaluate
from train.fit import fit_subjects
from train.latents import encode_stimuli, shown_latents
from train.order import Order
from train.pretrain import base_pictures, encode_latents
from train.recipe import Recipe, read_recipe
from train.table import METRICS
from train.trials import held_out_images, training_trials


def test_a_checkpoint_reads_back_and_decodes(tiny_checkpoint: Path, tiny_nsd: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    assert checkpoint.subject.number == 1
    assert checkpoint.subject.n_voxels == 100
    recipe = checkpoint.recipe
    cache = prepare(tiny_nsd, 1, recipe, subject_cache(tiny_checkpoint / "cache", 1))
    groups = held_out_groups(cache, recipe, [recipe.window], average=False, seed=1, n_groups=3)
    windows = averaged_windows(cache, groups, recipe.window, "whole_run", recipe)
    first = decode_windows(checkpoint, windows, seed=1, name="test")
    again = decode_windows(checkpoint, windows, seed=1, name="test")
    assert first.shape == (3, 64, 64, 3)
    assert np.array_equal(first, again)
    other_seed = decode_windows(checkpoint, windows, seed=2, name="test")
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


def test_a_checkpoint_says_what_it_held_out(
    tiny_checkpoint: Path, tiny_nsd: Path, tiny_recipe: Recipe
) -> None:
    (subject,) = read_info(tiny_checkpoint).subjects
    cache = prepare(tiny_nsd, 1, tiny_recipe, subject_cache(tiny_checkpoint / "cache", 1))
    assert [RunKey(*key) for key in subject.held_out_runs] == cache.test_runs
    assert subject.n_train_trials == len(training_trials(cache, held_out_images([cache])))


def test_latents_are_encoded_once(tiny_base: Path, tiny_nsd: Path, tmp_path: Path) -> None:
    layout = Layout(tiny_nsd)
    images = np.unique([item.trial.image for item in run_trials(layout, runs(layout, 1))])[:40]
    few = shown_latents(layout, images[::2], tiny_base, 8, tmp_path)
    every = shown_latents(layout, images, tiny_base, 8, tmp_path)
    torch.testing.assert_close(every[::2], few, rtol=0, atol=0)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    torch.testing.assert_close(shown_latents(layout, images[1::2], tiny_base, 8, tmp_path), every[1::2])
    assert path.stat().st_mtime_ns == written
    with Stimuli(layout) as stimuli:
        expected = encode_latents(load_vae(tiny_base), stimuli.images(images.tolist()))
    torch.testing.assert_close(every, expected, rtol=1e-4, atol=1e-5)


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
    rows = evaluate(Evaluation(root=tiny_nsd, checkpoint=tiny_checkpoint, out=tmp_path, n_trials=32))
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["rows"].keys() == rows.keys() == {"offline", "streaming", "ceiling", "floor"}
    for row in table["rows"].values():
        assert row.keys() == {metric.name for metric in METRICS}
        for name in ("SSIM", "PixCorr", "Pixels", "HOG", "EffNet-Lite0"):
            assert -1 <= row[name]["low"] <= row[name]["value"] <= row[name]["high"] <= 1
            assert row[name]["n_trials"] == 32
    grid = cv2.imread(str(tmp_path / "grid.png"))
    assert grid is not None
    assert grid.shape == (2 * 4 * 64 + 8, 16 * 64, 3)


def test_evaluation_at_other_window_starts(tiny_checkpoint: Path, tiny_nsd: Path, tmp_path: Path) -> None:
    order = Evaluation(root=tiny_nsd, checkpoint=tiny_checkpoint, out=tmp_path, n_trials=4, offsets=[-3, 3])
    assert evaluate(order).keys() == {"from -4.0 s", "from 4.0 s", "ceiling", "floor"}
    assert main(
        ["evaluate", "--nsd", str(tiny_nsd), "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path)]
        + ["--trials", "4", "--offsets", "-3", "3"]
    ) == 0  # fmt: skip


def test_another_subjects_checkpoint_is_refused(
    tiny_checkpoint: Path, tiny_nsd: Path, tmp_path: Path
) -> None:
    order = Evaluation(root=tiny_nsd, checkpoint=tiny_checkpoint, out=tmp_path / "out", subject=2)
    with pytest.raises(TrainError, match=r"expected a subject that .* was trained on \(1\), not 2"):
        evaluate(order)
    assert not (tmp_path / "out").exists()


def test_errors_say_what_was_expected(
    tiny_nsd: Path,
    tiny_recipe: Recipe,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    order = Order(root=tiny_nsd, subjects=[1], recipe=tiny_recipe, base=tmp_path, out=tmp_path / "out")
    with pytest.raises(TrainError, match="a base model is a folder"):
        fit_subjects(order)
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
