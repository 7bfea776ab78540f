"""A base model and a recipe small enough to train in a test, with the full model's classes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from sim.scenes import SceneSet
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
        unet_training=short(3),
    )
    brain = msgspec.structs.replace(demo.brain, hidden_width=24)
    return msgspec.structs.replace(demo, base=base, brain=brain, fit=short(4))


@pytest.fixture(scope="session")
def pictures() -> NDArray[np.uint8]:
    scenes = SceneSet(3)
    return np.stack([scenes.render(image) for image in range(24)])


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Recipe, pictures: NDArray[np.uint8]) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train_base(pictures, tiny_recipe, folder, seed=1)
    return folder
