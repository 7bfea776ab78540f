"""Trains a decoder: windows, latents of the shown pictures, the single stage, the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsd import Layout
from realtime.atomic import write_whole
from train.checkpoints.checkpoint import CheckpointInfo, read_info, read_weights, save_checkpoint
from train.data.dataset import WindowData
from train.data.latents import shown_latents
from train.errors import TrainError
from train.fitting.job import Order, describe_checkpoint, terms_of, training_set
from train.loop.distributed import is_main_process, main_process_first
from train.loop.loop import fit
from train.model.base_model import load_unet, load_vae
from train.model.base_of_recipe import base_of_recipe
from train.model.batch import Batch
from train.model.brain import BrainModule
from train.model.dynadiff import Dynadiff, brain_config
from train.model.finetune import set_trainable, trainable_again
from train.model.picture_encoder import load_picture_encoder
from train.model.sample import Pictures, decode
from train.recipe import DemoBase, Recipe
from train.store.fingerprints import Terms, base_identity, recipe_differences
from train.store.lock import alone_in

N_SAMPLES = 8
_OF_A_SUBJECT = ("subject.", "timestep.")


def fit_subjects(order: Order) -> None:
    """Train a decoder and write its checkpoint.

    :raises TrainError: the base model or the pretrained checkpoint cannot be read or does not belong to the
        recipe, or ``out`` holds another training, or one that is still running
    """
    base_folder = base_of_recipe(order.recipe, order.base)
    with ExitStack() as held:
        with main_process_first():
            if is_main_process():
                held.enter_context(alone_in(order.out, wait=False))
        _fit(order, base_folder)


def _fit(order: Order, base_folder: Path) -> None:
    recipe = order.recipe
    trained_on = training_set(order)
    data, n_subjects = trained_on.data, len(order.subjects)
    model = untrained_model(recipe, base_folder, data.n_voxels, order.seed, n_subjects, order.pretrained)
    images, place = np.unique(data.images, return_inverse=True)
    with main_process_first():
        latent_px = model.unet.config.sample_size
        layout, folder = Layout(order.root), order.cache_folder
        latents = shown_latents(layout, images, base_folder, latent_px, folder, recipe.latents)

    def batch_of(indices: NDArray[np.int64]) -> Batch:
        windows, _, subjects = data.batch(indices)
        return {"windows": windows.float(), "subjects": subjects, "latents": latents[place[indices]]}

    with main_process_first():
        if is_main_process():
            _claim(order, terms_of(order, base_folder))
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


def _claim(order: Order, terms: Terms) -> None:
    """Write the terms of a new training, or check those of the training in the folder.

    :raises TrainError: the folder holds a training with other terms; the message names the differences
    """
    path = order.out / "training" / "order.json"
    if not path.exists():
        if (order.out / "checkpoint.json").exists() or (order.out / "training" / "latest").exists():
            raise TrainError(f"{order.out} holds a checkpoint of another training; choose another --out")
        write_whole(path, msgspec.json.format(msgspec.json.encode(terms), indent=1).decode())
        return
    try:
        different = terms.differences(msgspec.json.decode(path.read_bytes(), type=Terms))
    except msgspec.MsgspecError as error:
        raise TrainError(
            f"{path}: expected a file written by this version of `train fit`: {error}; choose another --out, "
            "or remove the folder to start again"
        ) from error
    if different:
        raise TrainError(
            f"{order.out} holds a training with other {', '.join(different)}; choose another --out, or "
            "remove the folder to start again"
        )


def _sampler(model: Dynadiff, data: WindowData, base_folder: Path) -> Callable[[], Pictures]:
    """A function that decodes some training windows, for TensorBoard."""
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

    :param pretrained: checkpoint of other subjects; all of its weights are used except each subject's own
    """
    torch.manual_seed(seed)
    unet = load_unet(base_folder)
    set_trainable(unet, recipe.finetune)
    null_NW = starting_null(base_folder, recipe)
    brain = BrainModule(brain_config(recipe, n_voxels, n_subjects))
    # The brain's tokens start around "no condition", which in the demo has the tokens' mean and place codes.
    with torch.no_grad():
        brain.output.bias.copy_(null_NW.flatten())
    if pretrained is None:
        return Dynadiff(brain, unet, null_NW, recipe)
    _check_parent(pretrained, read_info(pretrained), recipe, base_folder)
    weights, null_NW = read_weights(pretrained)
    kept = {name: value for name, value in weights.items() if not name.startswith(_OF_A_SUBJECT)}
    missing = [name for name in brain.load_state_dict(kept, strict=False).missing_keys]
    if not all(name.startswith(_OF_A_SUBJECT) for name in missing):
        raise TrainError(
            f"expected the shared weights of a brain module in {pretrained}, but {missing[0]} is missing; "
            "choose another checkpoint with --from"
        )
    return Dynadiff(brain, trainable_again(recipe.finetune, pretrained, base_folder), null_NW, recipe)


def _check_parent(folder: Path, info: CheckpointInfo, recipe: Recipe, base_folder: Path) -> None:
    """Check that a training may start from a decoder of other subjects.

    :raises TrainError: its settings differ, or it was trained on pictures that the new subject is tested on
    """
    if info.method != "dynadiff":
        raise TrainError(f"expected a checkpoint of `train fit` in {folder}, found one of the baseline")
    theirs = info.recipe
    if theirs.split != recipe.split or (theirs.split == "time-resolved" and len(info.subjects) == 1):
        raise TrainError(
            f"expected a checkpoint in {folder} that was not trained on pictures that the new subject is "
            f"tested on: one with the recipe's split, {recipe.split}, and of several subjects if that is "
            f"time-resolved; found split {theirs.split} and {len(info.subjects)} subject(s)"
        )
    # With a prior of the drifts, causal windows are nearer to those of whole runs, which every decoder knows.
    prior = recipe.preprocessing.drift_prior
    preprocessing = msgspec.structs.replace(theirs.preprocessing, drift_prior=prior)
    alike = msgspec.structs.replace(theirs, preprocessing=preprocessing)
    # The length of the training may differ, and the baseline's settings do not matter.
    different = [name for name in recipe_differences(recipe, alike) if name not in ("fit", "ridge")]
    if different:
        found = ", ".join(str(getattr(theirs, name)) for name in different)
        raise TrainError(
            f"expected that {folder} was trained with this recipe's {', '.join(different)}, found {found}"
        )
    if info.base_identity not in (None, base_identity(base_folder)):
        raise TrainError(
            f"expected that {folder} was trained on the base model in {base_folder}, found another base "
            "model; give that one with --base"
        )


def starting_null(base: Path, recipe: Recipe) -> Tensor:
    """The null condition before training, ``[N, W]``: the demo base model's own, or zeros.

    Where the recipe says zeros, it is zeros for any base model.
    """
    if isinstance(recipe.base, DemoBase) and recipe.diffusion.null_condition == "learned":
        return load_picture_encoder(base, recipe.base)[1]
    return torch.zeros(recipe.base.n_tokens, recipe.base.token_width)
