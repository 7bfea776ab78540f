"""A checkpoint small enough to export in a test: the real classes, random weights, LoRA that matters."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import nibabel
import numpy as np
import pytest
import torch

from export.__main__ import main
from export.graphs import onnx_model
from export.graphs.graphs import Graph, brain_graph, denoise_graph, vae_graph
from export.graphs.samplers import ddim
from export.lineage.source import read_checkpoint
from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import DriftPrior
from train.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointInfo,
    TrainedSubject,
    save_checkpoint,
    subject_folder,
)
from train.data.found import Found
from train.model.base_model import make_unet, make_vae
from train.model.brain import BrainModule
from train.model.diffusion import make_scheduler
from train.model.dynadiff import Dynadiff, brain_config
from train.model.finetune import set_trainable
from train.recipe import Recipe, read_recipe

GRID = (5, 4, 3)
N_VOXELS = 30
AFFINE = np.diag([1.8, 1.8, 1.8, 1.0])
DEMO = Path(__file__).parents[2] / "realtime" / "demo_data" / "bundle"
DEMO_GRAPHS = ["brain", "denoise", "vae"]
STORED_ELEMENTS = 256
"""Weights of the tiny model that count as big."""


def tiny_recipe() -> Recipe:
    recipe, replace = read_recipe(), msgspec.structs.replace
    return replace(
        recipe,
        base=replace(
            recipe.base,
            latent_channels=4,
            vae_widths=(8, 8, 8),
            unet_widths=(16, 32),
            attention_head_width=8,
            n_tokens=3,
            token_width=8,
        ),
        brain=replace(recipe.brain, hidden_width=32),
        finetune=replace(recipe.finetune, rank=2, alpha=6),
        diffusion=replace(recipe.diffusion, inference_steps=4, guidance=3.0),
    )


def write_checkpoint(root: Path, recipe: Recipe, n_voxels: int = N_VOXELS) -> tuple[Path, Path]:
    """A base model and a checkpoint as training leaves them, with random weights; returns both folders."""
    torch.manual_seed(0)
    base, folder = root / "base", root / "checkpoint"
    unet, vae = make_unet(recipe.base), make_vae(recipe.base)
    vae.register_to_config(scaling_factor=0.7)
    unet.save_pretrained(base / "image_unet")
    vae.save_pretrained(base / "vae")
    set_trainable(unet, recipe.finetune)
    for name, weight in unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    null = torch.randn(recipe.base.n_tokens, recipe.base.token_width)
    model = Dynadiff(BrainModule(brain_config(recipe, n_voxels)), unet, null, recipe)
    info = CheckpointInfo(
        subjects=[
            TrainedSubject(
                number=1,
                n_voxels=n_voxels,
                held_out_runs=[(1, 1, 3), (1, 2, 5)],
                n_train_trials=1234,
                trained_sessions=[1, 2],
                found=Found(sessions=2, runs=24, presentations=1500, shared_images=71, repaired=0),
                drift_prior=DriftPrior(frequencies_hz=(1 / 600, 2 / 600), noise_to_drift=(0.2, 0.5)),
            )
        ],
        seed=7,
        tr_s=4 / 3,
        recipe=recipe,
        base=os.path.relpath(base, folder),
        last_loss=0.125,
    )
    save_checkpoint(folder, model, info)
    of_subject = subject_folder(folder, 1)
    of_subject.mkdir()
    mask = np.zeros(np.prod(GRID) if n_voxels == N_VOXELS else n_voxels, dtype=np.int16)
    mask[:n_voxels] = 1
    shape = GRID if n_voxels == N_VOXELS else (n_voxels, 1, 1)
    nibabel.save(nibabel.Nifti1Image(mask.reshape(shape), AFFINE), of_subject / "roi.nii.gz")
    ones = np.ones(n_voxels, dtype=np.float32)
    np.savez(of_subject / "prior.npz", mean=900 * ones, sd=20 * ones)
    (folder / "synthetic.json").write_text(json.dumps({"seed": 5, "settings_sha256": "ab" * 32}))
    return base, folder


def trace_graphs(
    folder: Path, recipe: Recipe, n_voxels: int, latents: tuple[int, ...], is_half: bool
) -> None:
    """The three graphs of an untrained model as ONNX files, traced one after the other as the export does."""
    torch.manual_seed(0)
    sampler, base = ddim(4, 3.0), recipe.base
    conditions = torch.randn(2, base.n_tokens, base.token_width)
    makers: list[Callable[[], Graph]] = [
        lambda: brain_graph(BrainModule(brain_config(recipe, n_voxels)), 1, n_cases=1),
        lambda: denoise_graph(
            make_unet(base), make_scheduler().alphas_cumprod, sampler, conditions, latents, 1
        ),
        lambda: vae_graph(make_vae(base), latents, 1, n_cases=1),
    ]
    for make in makers:
        graph = make()
        graph.module.requires_grad_(False)
        if is_half:
            graph.module.to_half()
        onnx_model.save(onnx_model.trace(graph), folder / f"{graph.name}.onnx")


@pytest.fixture(scope="session", params=["float32", "float16"])
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model's graphs, in one precision and the other; not to be changed."""
    folder = tmp_path_factory.mktemp(request.param)
    trace_graphs(folder, tiny_recipe(), N_VOXELS, (4, 16, 16), is_half=request.param == "float16")
    return folder


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What the command made of the tiny checkpoint, and what it said."""

    root: Path
    folder: Path
    checkpoint: Checkpoint
    bundle: Bundle
    said: str


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny checkpoint; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_recipe())[1]


@pytest.fixture(scope="session")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The tiny checkpoint, exported by the command; not to be changed."""
    root = tmp_path_factory.mktemp("bundles")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(onnx_model, "MIN_STORED_ELEMENTS", STORED_ELEMENTS)
        table = tiny_checkpoint.parent / "table.md"
        table.write_text("| offline | 0.987 |\n")
        score = {"value": 0.857, "standard_error": 0.01, "low": 0.83, "high": 0.88, "n_trials": 320}
        rows: dict[str, object] = {
            "offline": {"CLIP": {"needs": "a download"}, "HOG": score | {"value": 0.9}},
            "streaming": {"HOG": score, "HOG by picture": score, "PixCorr": score},
            "floor": {"HOG": score},
        }
        table.with_name("table.json").write_text(json.dumps({"average": False, "rows": rows}))
        command = ["bundle", "--checkpoint", str(tiny_checkpoint), "--out", str(root / "sub-01")]
        code = main([*command, "--evaluation", str(table)])
    assert code == 0
    return Exported(
        root=root,
        folder=root / "sub-01",
        checkpoint=read_checkpoint(tiny_checkpoint),
        bundle=Bundle.open(root / "sub-01"),
        said=out.getvalue(),
    )
