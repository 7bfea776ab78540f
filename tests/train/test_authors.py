"""Everything that the authors' code does otherwise, together, from recordings to a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from export.__main__ import main as export_main
from realtime.bundle.bundle import Bundle
from train.__main__ import main
from train.checkpoints.checkpoint import load_checkpoint
from train.model.brain import BrainModule
from train.recipe import Recipe, read_recipe


def as_theirs(tiny: Recipe) -> Recipe:
    """The settings of the recipe ``authors`` at the size of a test, with residual blocks."""
    replace, theirs = msgspec.structs.replace, read_recipe(Path("authors"))
    return replace(
        tiny,
        split=theirs.split,
        brain=replace(theirs.brain, hidden_width=24, residual_blocks=2),
        preprocessing=theirs.preprocessing,
        finetune=replace(theirs.finetune, peak_learning_rate=1e-2),
        diffusion=replace(theirs.diffusion, inference_steps=4),
        latents=theirs.latents,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("compiler", "offline")
def test_a_decoder_as_theirs_is_trained_evaluated_and_exported(
    tiny_nsd: Path, tiny_base: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.commands.fitting.read_recipe", lambda _: as_theirs(tiny_recipe))
    checkpoint, results, bundle = (tmp_path / name for name in ("checkpoint", "results", "bundle"))
    nsd = ["--nsd", str(tiny_nsd)]
    assert main(["fit", *nsd, "--subject", "1", "--base", str(tiny_base), "--out", str(checkpoint)]) == 0
    loaded = load_checkpoint(checkpoint)
    assert isinstance(loaded.brain, BrainModule)
    assert loaded.brain.config.residual_place == "before aggregation"
    assert not loaded.null_NW.any()

    scored = ["--upsample-truth", "--blur-faces", "decoded", "--trials", "6"]
    evaluated = ["evaluate", *nsd, "--checkpoint", str(checkpoint), "--out", str(results), *scored]
    assert main(evaluated) == 0
    table = json.loads((results / "table.json").read_text())
    assert (table["sampler"], table["scoring"]["blur_faces"], table["split"]) == (
        "ddpm",
        "decoded",
        "standard",
    )
    assert main([*evaluated, "--sampler", "ddim"]) == 0
    assert json.loads((results / "table.json").read_text())["sampler"] == "ddim"

    assert export_main(["bundle", "--checkpoint", str(checkpoint), "--out", str(bundle)]) == 0
    made = Bundle.open(bundle)
    assert made.spec.samplers[0].name == "ddim-4"
    assert np.allclose(made.spec.samplers[0].guidance, 3.5)
    assert "samples with DDPM" in (bundle / "README.md").read_text()
