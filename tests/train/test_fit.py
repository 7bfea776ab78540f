"""From a synthetic subject's files to a checkpoint and a table: the real way, small."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from nsd import Layout, RunKey, Stimuli, read_expdesign, run_trials, runs
from sim.__main__ import _parser
from train.__main__ import main
from train.checkpoints.checkpoint import load_checkpoint, read_info
from train.data.cache import prepare, subject_cache
from train.data.dataset import averaged_windows
from train.data.latents import encode_stimuli, shown_latents
from train.data.replays import held_out_in_words
from train.data.trials import held_out_images, training_trials
from train.errors import TrainError
from train.evaluation.evaluate import Evaluation, evaluate
from train.evaluation.held_out import decode_windows, held_out_groups
from train.evaluation.results_table import METRICS
from train.fitting.fit import fit_subjects
from train.fitting.job import Order, training_set
from train.fitting.pretrain import BasePictures, base_pictures, train_base, train_vae
from train.model.base_model import load_unet, load_vae
from train.model.finetune import merge_adapter
from train.model.vae import encode_latents, rebuilt_psnr_db
from train.recipe import Recipe, demo_base, read_recipe

from .conftest import scenes_of
from .test_lock import another_process_in


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
    merged = load_checkpoint(tiny_checkpoint).unet
    merge_adapter(merged)
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
    assert subject.trained_sessions == [1]


def test_held_out_runs_are_told_with_the_command_that_replays_one(
    tiny_checkpoint: Path, tiny_nsd: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (_, session, run), *_ = read_info(tiny_checkpoint).subjects[0].held_out_runs
    caplog.set_level("INFO")
    training_set(tiny_order(tiny_checkpoint, tiny_nsd))
    assert f"held out (session {session}: run {run})" in caplog.text
    evaluate(Evaluation(root=tiny_nsd, checkpoint=tiny_checkpoint, out=tmp_path, n_trials=2))
    *_, command = (line for line in caplog.text.splitlines() if "python -m sim replay" in line)
    words = shlex.split(command.partition("python -m sim ")[2])
    options = _parser().parse_args(words)
    assert (options.nsd, options.subject, options.session, options.run) == (tiny_nsd, 1, session, run)


def tiny_order(checkpoint: Path, root: Path) -> Order:
    """The order that a checkpoint was made by."""
    recipe = read_info(checkpoint).recipe
    base = (checkpoint / read_info(checkpoint).base).resolve()
    return Order(root=root, subjects=[1], recipe=recipe, base=base, out=checkpoint)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([(1, 2, 5), (1, 1, 10), (1, 2, 3)], "session 1: run 10; session 2: runs 3, 5"),
        ([], "no whole run, but the images that every subject saw"),
    ],
)
def test_held_out_runs_in_words(runs: list[tuple[int, int, int]], words: str) -> None:
    assert held_out_in_words(runs) == words


def test_a_checkpoint_of_an_earlier_version_is_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(tiny_checkpoint, old, ignore=shutil.ignore_patterns("cache", "training"))
    said = json.loads((old / "checkpoint.json").read_text())
    del said["base_identity"], said["n_sessions"], said["parent"], said["imported_from"]
    del said["subjects"][0]["data"]
    said["base"] = str((tiny_checkpoint / said["base"]).resolve())
    (old / "checkpoint.json").write_text(json.dumps(said))
    info = load_checkpoint(old).info
    assert info.terms.data == [None]
    assert info.terms.differences(read_info(tiny_checkpoint).terms) == ["base", "data"]


def test_another_base_model_than_a_checkpoints_is_refused(
    tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    load_checkpoint(tiny_checkpoint, base)
    unet = load_unet(base)
    unet.conv_in.weight.data += 1
    unet.save_pretrained(base / "image_unet")
    with pytest.raises(TrainError, match="expected the base model that .* was trained on, found another"):
        load_checkpoint(tiny_checkpoint, base)


def test_recordings_that_a_checkpoint_was_not_trained_on_are_refused(
    tiny_checkpoint: Path, tiny_nsd: Path, tmp_path: Path
) -> None:
    """With a run less, other runs are held out: some of those that trained."""
    root = tmp_path / "nsd"
    shutil.copytree(tiny_nsd, root)
    Layout(root).timeseries(1, 1, 12).unlink()
    order = Evaluation(root=root, checkpoint=tiny_checkpoint, out=tmp_path, caches=tmp_path / "cache")
    with pytest.raises(TrainError, match="expected the recordings of subject 1 that .* was trained on"):
        evaluate(order)


def test_a_folder_that_another_training_writes_to_is_refused(
    tiny_checkpoint: Path, tiny_nsd: Path, tiny_base: Path, tiny_recipe: Recipe
) -> None:
    order = Order(root=tiny_nsd, subjects=[1], recipe=tiny_recipe, base=tiny_base, out=tiny_checkpoint)
    with another_process_in(tiny_checkpoint), pytest.raises(TrainError, match="expected no other process in"):
        fit_subjects(order)


def test_latents_of_other_pictures_are_not_taken_for_the_right_ones(
    tiny_base: Path, tiny_nsd: Path, tmp_path: Path
) -> None:
    root = tmp_path / "nsd"
    shutil.copytree(tiny_nsd, root)
    layout = Layout(root)
    images = np.unique([item.trial.image for item in run_trials(layout, runs(layout, 1))])[:4]
    before = shown_latents(layout, images, tiny_base, 8, tmp_path / "cache")
    with h5py.File(layout.stimuli(), "r+") as file:
        for image in images.tolist():
            file["imgBrick"][image] = 255 - file["imgBrick"][image]
    after = shown_latents(layout, images, tiny_base, 8, tmp_path / "cache")
    assert not torch.allclose(before, after, atol=1e-2)


@pytest.mark.usefixtures("compiler")
def test_a_vae_that_was_half_written_is_made_again(
    tiny_recipe: Recipe, pictures: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = demo_base(tiny_recipe)
    with monkeypatch.context() as patch:

        def killed(vae: AutoencoderKL, folder: Path) -> None:
            vae.save_config(folder)
            raise KeyboardInterrupt

        patch.setattr("diffusers.AutoencoderKL.save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            train_vae(pictures, base, tmp_path, seed=1)
    vae = train_vae(pictures, base, tmp_path, seed=1)
    kept = load_vae(tmp_path)
    torch.testing.assert_close(encode_latents(kept, pictures[:2]), encode_latents(vae, pictures[:2]))


def test_a_base_model_is_gone_on_with_for_the_same_pictures_alone(
    tiny_base: Path, tiny_recipe: Recipe, pictures: NDArray[np.uint8]
) -> None:
    unet = (tiny_base / "image_unet" / "config.json").stat().st_mtime_ns
    for train, seed, other in ((pictures[::-1], 1, "pictures"), (pictures, 2, "seed")):
        other_pictures = BasePictures(train=train, held_out=pictures[:2], subject=1)
        with pytest.raises(TrainError, match=f"holds a base model with other {other};"):
            train_base(other_pictures, tiny_recipe, tiny_base, seed)
    figures = json.loads((tiny_base / "base.json").read_text())["figures"]
    expected = rebuilt_psnr_db(load_vae(tiny_base), scenes_of(range(24, 28)))
    assert figures["vae_psnr_db_held_out"] == pytest.approx(expected, rel=1e-3)
    assert (tiny_base / "image_unet" / "config.json").stat().st_mtime_ns == unet


def test_latents_are_encoded_once(tiny_base: Path, tiny_nsd: Path, tmp_path: Path) -> None:
    layout = Layout(tiny_nsd)
    images = np.unique([item.trial.image for item in run_trials(layout, runs(layout, 1))])[:40]
    few = shown_latents(layout, images[::2], tiny_base, 8, tmp_path)
    every = shown_latents(layout, images, tiny_base, 8, tmp_path)
    torch.testing.assert_close(every[::2], few, rtol=0, atol=0)
    (path,) = tmp_path.glob("latents-*.safetensors")
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


def test_base_pictures_are_none_that_the_subject_is_shown(
    tiny_nsd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = read_expdesign(Layout(tiny_nsd)).subject_images[0]
    with Stimuli(Layout(tiny_nsd)) as stimuli:
        unseen = np.setdiff1d(np.arange(len(stimuli)), seen)
        drawn = np.sort(np.random.default_rng(1).choice(unseen, 5, replace=False))
        expected = stimuli.images(drawn.tolist())
    asked: list[list[int]] = []
    read = Stimuli.images

    def note(self: Stimuli, images: Sequence[int]) -> NDArray[np.uint8]:
        asked.append(list(images))
        return read(self, images)

    monkeypatch.setattr(Stimuli, "images", note)
    found = base_pictures(tiny_nsd, 1, 5, seed=1)
    assert np.array_equal(found.train, expected)
    assert found.subject == 1
    train, held_out = asked
    assert train == drawn.tolist()
    assert len(found.held_out) == len(set(held_out)) == 256
    assert not set(held_out) & set(train)
    assert set(held_out) <= set(unseen.tolist())
    with pytest.raises(TrainError, match="expected more than 73000 stimuli"):
        base_pictures(tiny_nsd, 1, 73_000, seed=1)


def test_evaluation_writes_table_and_grid(
    tiny_checkpoint: Path, tiny_nsd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = evaluate(Evaluation(root=tiny_nsd, checkpoint=tiny_checkpoint, out=tmp_path, n_trials=32))
    bars = capsys.readouterr().err
    for way in ("offline", "streaming", "ceiling"):
        for stage in (way, f"EfficientNet-Lite0, {way}", f"metrics, {way}"):
            assert f"\r{stage}: 100%" in bars
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["rows"].keys() == rows.keys() == {"offline", "streaming", "ceiling", "floor"}
    for row in table["rows"].values():
        assert row.keys() == {metric.name for metric in METRICS}
        for name in ("SSIM", "PixCorr", "Pixels", "HOG", "EffNet-Lite0"):
            assert -1 <= row[name]["low"] <= row[name]["value"] <= row[name]["high"] <= 1
            assert row[name]["n_trials"] == 32
    assert (table["found"]["sessions"], table["found"]["runs"], table["found"]["repaired"]) == (1, 12, 0)
    assert 0 < table["found"]["shared_images"] < 1000
    text = (tmp_path / "table.md").read_text()
    assert f"{table['found']['shared_images']} of the 1000 shared images" in text
    assert "1 of the 40 sessions of subject 1" in text
    assert f"of {table['within_warmup']} of the 32 presentations the window ends within" in text
    grid = cv2.imread(str(tmp_path / "grid.png"))
    assert grid is not None
    assert grid.shape[0] > 2 * 4 * 64
    assert grid.shape[1] > 16 * 64


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
    with pytest.raises(TrainError, match=r"expected one of the subjects that .* was trained on \(1\), got 2"):
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
