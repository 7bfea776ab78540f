"""Fit subjects: windows, latents of what was shown, the single stage, the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsd import Layout
from train.base import find_base, is_on_hub, load_unet, load_vae
from train.brain import BrainModule
from train.checkpoint import read_info, read_weights, save_checkpoint
from train.dataset import WindowData
from train.dynadiff import Dynadiff, brain_config
from train.errors import TrainError
from train.finetune import set_trainable, trainable_again
from train.latents import shown_latents
from train.loop import Batch, fit
from train.order import Order, describe_checkpoint, training_set
from train.pretrain import load_picture_encoder
from train.processes import is_main_process, main_process_first
from train.recipe import DemoBase, Recipe
from train.sample import Pictures, decode

N_SAMPLES = 8
_OF_A_SUBJECT = ("subject.", "timestep.")


def fit_subjects(order: Order) -> None:
    """Train a decoder and write its checkpoint.

    :raises TrainError: when the base model or the pretrained checkpoint is not one, does not fit the recipe,
        or ``out`` holds another run.
    """
    recipe, base_folder = order.recipe, find_base(order.base)
    trained_on = training_set(order)
    data, n_subjects = trained_on.data, len(order.subjects)
    model = untrained_model(recipe, base_folder, data.n_voxels, order.seed, n_subjects, order.pretrained)
    images, place = np.unique(data.images, return_inverse=True)
    with main_process_first():
        latent_px = model.unet.config.sample_size
        latents = shown_latents(Layout(order.root), images, base_folder, latent_px, order.cache_folder)

    def batch_of(indices: NDArray[np.int64]) -> Batch:
        windows, _, subjects = data.batch(indices)
        return {"windows": windows.float(), "subjects": subjects, "latents": latents[place[indices]]}

    _claim(order)
    losses = fit(
        model,
        batch_of,
        len(data),
        recipe.fit,
        folder=order.out / "training",
        seed=order.seed,
        name=f"subject {' '.join(map(str, order.subjects))}",
        sample=_sampler(model, data, base_folder),
    )
    if is_main_process():
        last_loss = float(np.mean(losses[-200:]))
        info = describe_checkpoint(order, trained_on, base_folder, recipe, "dynadiff", last_loss)
        save_checkpoint(order.out, model.float(), info)


def _claim(order: Order) -> None:
    """Note what a training is of; refuse a folder where another one's is.

    :raises TrainError: saying in what the other differs
    """
    ours: dict[str, Any] = msgspec.to_builtins(order.recipe) | {
        "subjects": list(order.subjects),
        "sessions": order.n_sessions,
        "from": str(order.pretrained.resolve()) if order.pretrained else None,
        "base": str(order.base) if is_on_hub(order.base) else str(Path(order.base).resolve()),
        "seed": order.seed,
    }
    path = order.out / "training" / "order.json"
    ours = json.loads(json.dumps(ours))
    if path.exists():
        theirs = json.loads(path.read_text())
        different = sorted(name for name in ours if theirs.get(name) != ours[name])
        if different:
            raise TrainError(
                f"{order.out} holds a training with other {', '.join(different)}; choose another --out, or "
                "remove it to begin anew"
            )
        return
    if (order.out / "checkpoint.json").exists() or (order.out / "training" / "latest").exists():
        raise TrainError(f"{order.out} holds a checkpoint of another making; choose another --out")
    if is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(ours, indent=1))
        partial.replace(path)


def _sampler(model: Dynadiff, data: WindowData, base_folder: Path) -> Callable[[], Pictures]:
    """Decodes some windows that train, for TensorBoard."""
    windows, _, subjects = data.batch(np.linspace(0, len(data) - 1, N_SAMPLES).astype(np.int64))
    vae = load_vae(base_folder)

    def condition_of(part: slice) -> Tensor:
        null = model.null
        tokens: Tensor = model.brain(windows[part].to(null), subjects[part].to(null.device))
        return tokens

    def sample() -> Pictures:
        parts = model.unet, vae.to(model.null.device), model.null
        return decode(condition_of, N_SAMPLES, *parts, model.settings, 1, None)

    return sample


def untrained_model(
    recipe: Recipe,
    base_folder: Path,
    n_voxels: int,
    seed: int,
    n_subjects: int = 1,
    pretrained: Path | None = None,
) -> Dynadiff:
    """The model before its first step: the base model's UNet, adapters without effect, a new brain module.

    :param pretrained: checkpoint of other subjects, whose weights are taken over but for those of a subject
    """
    torch.manual_seed(seed)
    unet = load_unet(base_folder)
    set_trainable(unet, recipe.finetune)
    null_NW = starting_null(base_folder, recipe)
    brain = BrainModule(brain_config(recipe, n_voxels, n_subjects))
    # The brain's tokens start around "no condition"; the demo's base model keeps their mean and places in it.
    with torch.no_grad():
        brain.output.bias.copy_(null_NW.flatten())
    if pretrained is None:
        return Dynadiff(brain, unet, null_NW, recipe)
    info = read_info(pretrained)
    if info.method != "dynadiff":
        raise TrainError(f"expected a checkpoint of `fit` in {pretrained}, found the baseline's")
    theirs = info.recipe
    if theirs.split != recipe.split or (theirs.split == "time-resolved" and len(info.subjects) == 1):
        raise TrainError(
            f"expected {pretrained} to have trained on no picture that the new subject is tested on: one of "
            f"several subjects, or of the standard split, and of the recipe's, {recipe.split}; found split "
            f"{theirs.split} and {len(info.subjects)} subject(s)"
        )
    if (theirs.finetune, theirs.brain, theirs.window) != (recipe.finetune, recipe.brain, recipe.window):
        raise TrainError(
            f"expected {pretrained} to have been trained with this recipe's brain, window and finetune "
            f"sections, found {theirs.brain}, {theirs.window}, {theirs.finetune}"
        )
    weights, null_NW = read_weights(pretrained)
    kept = {name: value for name, value in weights.items() if not name.startswith(_OF_A_SUBJECT)}
    missing = [name for name in brain.load_state_dict(kept, strict=False).missing_keys]
    if not all(name.startswith(_OF_A_SUBJECT) for name in missing):
        raise TrainError(
            f"expected the shared weights of a brain module in {pretrained}, {missing[0]} is missing"
        )
    return Dynadiff(brain, trainable_again(recipe.finetune, pretrained, base_folder), null_NW, recipe)


def starting_null(base: Path, recipe: Recipe) -> Tensor:
    """What stands for "no condition" before training, ``[N, W]``: what the base model learned, or zeros."""
    if isinstance(recipe.base, DemoBase):
        return load_picture_encoder(base, recipe.base)[1]
    return torch.zeros(recipe.base.n_tokens, recipe.base.token_width)
