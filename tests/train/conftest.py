"""A base model and a recipe small enough to train in a test, with the full model's classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from nsd import N_IMAGES, Layout, read_expdesign, run_trials, runs
from sim.scenes import SceneSet
from sim.settings import read_settings
from sim.synthesize import synthesize
from train.fit import fit_subject
from train.pretrain import train_base
from train.recipe import Recipe, Training, read_recipe


def short(steps: int, precision: str = "fp32") -> Training:
    return Training(
        steps=steps,
        micro_batch=4,
        peak_learning_rate=1e-3,
        warmup_steps=1,
        precision=precision,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    demo = read_recipe()
    base = msgspec.structs.replace(
        demo.base,
        latent_channels=4,
        vae_widths=(8, 8, 8, 16),
        unet_widths=(32, 32),
        attention_head_width=16,
        token_width=16,
        n_pictures=24,
        vae_training=short(3),
        encoder_training=short(3),
        unet_training=short(3),
    )
    brain = msgspec.structs.replace(demo.brain, hidden_width=24)
    return msgspec.structs.replace(demo, base=base, brain=brain, fit=short(4))


@pytest.fixture(scope="session")
def pictures() -> NDArray[np.uint8]:
    scenes = SceneSet(3)
    return np.stack([scenes.render(image) for image in range(24)])


@pytest.fixture(scope="session")
def tiny_base(
    tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Recipe, pictures: NDArray[np.uint8]
) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train_base(pictures, tiny_recipe, folder, seed=1)
    return folder


@pytest.fixture(scope="session")
def tiny_nsd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One session of a small synthetic subject, with the pictures it shows and 30 others."""
    root = tmp_path_factory.mktemp("nsd")
    settings = replace(read_settings(), grid=(8, 8, 8), n_roi_voxels=100, shell_voxels=2.0)
    synthesize(root, settings=settings, seed=3, subject=1, n_sessions=1, n_stimuli=1)
    layout = Layout(root)
    plan = read_expdesign(layout)
    shown = {item.trial.image for item in run_trials(layout, runs(layout, 1))}
    others = np.setdiff1d(np.arange(200), plan.subject_images[0])[:30]
    scenes = SceneSet(3)
    layout.stimuli().unlink()
    with h5py.File(layout.stimuli(), "w") as file:
        brick = file.create_dataset("imgBrick", (N_IMAGES, 64, 64, 3), np.uint8, chunks=(1, 64, 64, 3))
        for image in sorted(shown | set(others.tolist())):
            brick[image] = scenes.render(image)
    return root


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_nsd: Path, tiny_base: Path, tiny_recipe: Recipe
) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "sub-01"
    fit_subject(tiny_nsd, 1, tiny_recipe, tiny_base, folder, seed=1)
    return folder
