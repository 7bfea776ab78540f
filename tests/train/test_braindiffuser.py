"""The baseline from a synthetic subject's files to pictures of the runtime: the real way, small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from export.__main__ import main as export_main
from export.parity.decodes import torch_pictures
from export.parity.differences import psnr_db
from nsd import Layout, Stimuli
from realtime.bundle.bundle import Bundle
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine
from train.__main__ import main
from train.checkpoints.checkpoint import load_checkpoint
from train.data.cache import prepare, subject_cache
from train.data.dataset import averaged_windows
from train.data.latents import encode_stimuli
from train.data.trials import held_out_images, training_trials
from train.evaluation.evaluate import Evaluation, evaluate
from train.evaluation.held_out import decode_windows, held_out_groups
from train.model.base_model import load_unet, load_vae
from train.model.linear_brain import LinearBrain
from train.recipe import Latents, Recipe
from train.systems.brain_diffuser.tokens import load_token_encoder

from .test_processes import as_toml


@pytest.fixture(scope="module")
def ridge_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_nsd: Path, tiny_base: Path, tiny_recipe: Recipe
) -> Path:
    folder = tmp_path_factory.mktemp("ridge")
    diffusion = msgspec.structs.replace(tiny_recipe.diffusion, inference_steps=20)
    # The baseline predicts modes, whatever else a recipe trains on.
    latents = Latents(posterior="sample")
    recipe = msgspec.structs.replace(tiny_recipe, diffusion=diffusion, latents=latents)
    command = ["ridge", "--nsd", str(tiny_nsd), "--subject", "1", "--base", str(tiny_base)]
    command += ["--cache", str(folder / "cache"), "--out", str(folder / "sub-01")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.commands.fitting.read_recipe", lambda _: recipe)
        assert main(command) == 0
    return folder / "sub-01"


@pytest.fixture(scope="module")
def ridge_bundle(ridge_checkpoint: Path) -> Path:
    out = ridge_checkpoint.parent / "bundle"
    assert export_main(["bundle", "--checkpoint", str(ridge_checkpoint), "--out", str(out)]) == 0
    return out


def test_what_it_predicts_is_spread_as_what_was_seen(
    ridge_checkpoint: Path, tiny_nsd: Path, tiny_base: Path, tiny_recipe: Recipe
) -> None:
    """Of tokens and latents: the training pictures' mean, and more than a ridge regression's own spread."""
    checkpoint = load_checkpoint(ridge_checkpoint)
    assert isinstance(checkpoint.brain, LinearBrain)
    cache = prepare(tiny_nsd, 1, tiny_recipe, subject_cache(ridge_checkpoint.parent / "cache", 1))
    chosen = training_trials(cache, held_out_images([cache]))
    assert len(chosen) == checkpoint.subject.n_train_trials
    images = [cache.trials[trial].trial.image for trial in chosen.tolist()]
    tokens_of, null_NW = load_token_encoder(tiny_base, tiny_recipe.base)
    assert torch.equal(checkpoint.null_NW, null_NW)
    with Stimuli(Layout(tiny_nsd)) as stimuli:
        tokens = tokens_of(stimuli.images(images))
        latents = encode_stimuli(stimuli, images, load_vae(tiny_base), 8)
    windows = torch.from_numpy(cache.form("causal")[chosen].astype(np.float32)).transpose(1, 2)
    predicted = checkpoint.brain(windows, torch.zeros(len(windows), dtype=torch.long))
    start = checkpoint.brain.start(windows)
    for found, truth in ((predicted, tokens), (start, latents)):
        assert found.shape == truth.shape
        error = (found.mean(0) - truth.mean(0)).abs() / truth.std(0).clamp(min=1e-3)
        assert float(error.median()) < 0.2
        assert float((found.std(0) / truth.std(0).clamp(min=1e-3)).median()) > 0.9
        together = torch.stack([found.flatten(), truth.flatten()])
        assert float(torch.corrcoef(together)[0, 1]) > 0.5, "it has learned the trials it was fitted to"


def test_it_is_evaluated_like_any_other(ridge_checkpoint: Path, tiny_nsd: Path, tmp_path: Path) -> None:
    caches = ridge_checkpoint.parent / "cache"
    order = Evaluation(root=tiny_nsd, checkpoint=ridge_checkpoint, out=tmp_path, n_trials=8, caches=caches)
    rows = evaluate(order)
    assert rows.keys() == {"offline", "streaming", "ceiling", "floor"}


def test_pictures_depend_on_latents_and_tokens(ridge_checkpoint: Path, tiny_nsd: Path) -> None:
    checkpoint = load_checkpoint(ridge_checkpoint)
    recipe = checkpoint.recipe
    cache = prepare(tiny_nsd, 1, recipe, subject_cache(ridge_checkpoint.parent / "cache", 1))
    groups = held_out_groups(cache, recipe, [recipe.window], average=False, seed=1, n_groups=3)
    windows = averaged_windows(cache, groups, recipe.window, "causal", recipe)
    first = decode_windows(checkpoint, windows, seed=1, name="test")
    assert first.shape == (3, 64, 64, 3)
    assert np.array_equal(first, decode_windows(checkpoint, windows, seed=1, name="test"))
    for layer in ("latents", "condition"):
        checkpoint.brain.get_parameter(f"{layer}.first").zero_()
        changed = decode_windows(checkpoint, windows, seed=1, name="test")
        assert not np.array_equal(first, changed)
    # One level of 255: rows of a batch may be computed by kernels that add in another order.
    np.testing.assert_allclose(changed[0].astype(int), changed[1].astype(int), rtol=0, atol=1)
    assert np.ptp(first.astype(int), axis=0).max() > 1, "with both, pictures differ by the brain"


def test_its_bundle_starts_from_what_the_brain_predicts(ridge_bundle: Path) -> None:
    bundle = Bundle.open(ridge_bundle)
    spec = bundle.spec
    assert [tensor.name for tensor in spec.graphs["brain"].outputs] == ["condition", "start"]
    assert [sampler.name for sampler in spec.samplers] == ["ddim-15-of-20", "ddim-7-of-10"]
    assert spec.samplers[0].timesteps[0] == 701
    assert spec.samplers[0].start[0] > 0
    stages = {stage.name: stage for stage in spec.provenance}
    assert "merged" not in stages
    assert stages["model"].parity == {}
    assert stages["brain onnx"].made_from == (stages["model"].sha256,)
    assert stages["brain stored"].parity.keys() == {"condition", "start"}
    assert "Brain-Diffuser" in (ridge_bundle / "README.md").read_text()
    assert "as pretrained" in (ridge_bundle / "README.md").read_text()


def test_the_runtime_decodes_into_the_pictures_of_torch(ridge_bundle: Path, ridge_checkpoint: Path) -> None:
    bundle, checkpoint = Bundle.open(ridge_bundle), load_checkpoint(ridge_checkpoint)
    windows = np.random.default_rng(11).standard_normal((3, 100, 6), dtype=np.float32)
    decoder = Decoder(bundle, open_engine(bundle, "onnxruntime-cpu"), seed=12)
    for sampler in bundle.spec.samplers:
        found = [decoder.decode(window, sampler).image for window in windows]
        expected = torch_pictures(checkpoint, windows, sampler, 12)
        for ours, theirs in zip(found, expected, strict=True):
            assert psnr_db(ours, theirs) > 45
        assert psnr_db(found[0], found[1]) < 40, "the window must matter, else nothing is tested"


def test_its_unet_is_the_base_models(ridge_checkpoint: Path, tiny_base: Path) -> None:
    found, base = load_checkpoint(ridge_checkpoint).unet, load_unet(tiny_base)
    for (name, ours), (_, theirs) in zip(found.named_parameters(), base.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not (ridge_checkpoint / "adapter").exists()


def test_many_processes_are_refused(tiny_nsd: Path, tiny_base: Path, tmp_path: Path) -> None:
    launched = os.environ | {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    command = [sys.executable, "-m", "train", "ridge", "--nsd", str(tiny_nsd), "--subject", "1"]
    command += ["--base", str(tiny_base), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=launched, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "expected one process, found 2" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_not_written_over(
    ridge_checkpoint: Path,
    tiny_nsd: Path,
    tiny_base: Path,
    tiny_recipe: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = json.loads((ridge_checkpoint / "checkpoint.json").read_text())
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(as_toml(msgspec.to_builtins(tiny_recipe)))
    command = ["ridge", "--nsd", str(tiny_nsd), "--subject", "1", "--base", str(tiny_base)]
    command += ["--recipe", str(recipe)]
    assert main([*command, "--out", str(ridge_checkpoint)]) == 2
    assert "already holds a checkpoint" in capsys.readouterr().err
    assert json.loads((ridge_checkpoint / "checkpoint.json").read_text()) == before
