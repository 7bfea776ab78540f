"""Trains a decoder: windows, latents of the shown pictures, the single stage, the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
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
from train.fitting.job import Order, describe_checkpoint, terms_of, training_set, validation_set
from train.loop.deepspeed_engine import steps_taken
from train.loop.distributed import is_main_process, main_process_first
from train.loop.loop import fit
from train.loop.plateau import HeldOut
from train.model.base_model import load_unet, load_vae
from train.model.base_of_recipe import base_of_recipe, warn_of_seen_pictures
from train.model.batch import Batch
from train.model.brain import BrainModule
from train.model.dynadiff import Dynadiff, brain_config
from train.model.finetune import set_trainable, trainable_again
from train.model.picture_encoder import load_picture_encoder
from train.model.sample import Pictures, decode
from train.recipe import DemoBase, Recipe, Training
from train.store.fingerprints import Terms, base_identity, recipe_differences
from train.store.lock import alone_in

N_SAMPLES = 8
_MEASURED_AT_ONCE = 64
_log = logging.getLogger(__name__)
_OF_A_SUBJECT = ("subject.", "timestep.")


def fit_subjects(order: Order) -> None:
    """Train a decoder and write its checkpoint.

    :raises TrainError: the base model or the pretrained checkpoint cannot be read or does not belong to the
        recipe, or ``out`` holds another training, or one that is still running
    """
    base_folder = base_of_recipe(order.recipe, order.base)
    if is_main_process():
        warn_of_seen_pictures(base_folder, order.subjects)
    with ExitStack() as held:
        with main_process_first():
            if is_main_process():
                held.enter_context(alone_in(order.out, wait=False))
        _fit(order, base_folder)


def _fit(order: Order, base_folder: Path) -> None:
    recipe = order.recipe
    trained_on = training_set(order)
    data, validation = trained_on.data, validation_set(order, trained_on)
    seed, n_subjects = order.training_seed, len(order.subjects)
    model = untrained_model(recipe, base_folder, data.n_voxels, seed, n_subjects, order.pretrained)
    images = np.unique(np.concatenate([part.images for part in (data, validation) if part]))
    with main_process_first():
        latent_px = model.unet.config.sample_size
        layout, folder = Layout(order.root), order.cache_folder
        latents = shown_latents(layout, images, base_folder, latent_px, folder, recipe.latents)

    def batch_from(part: WindowData, indices: NDArray[np.int64]) -> Batch:
        windows, shown, subjects = part.batch(indices)
        place = np.searchsorted(images, shown)
        return {"windows": windows.float(), "subjects": subjects, "latents": latents[place]}

    with main_process_first():
        terms = _claim(order, terms_of(order, base_folder)) if is_main_process() else None
    held_out = None
    if recipe.fit.plateau and validation:
        held_out = HeldOut(
            recipe.fit.plateau, partial(_steady_loss, model, partial(batch_from, validation), len(validation))
        )
    losses = fit(
        model,
        partial(batch_from, data),
        len(data),
        recipe.fit,
        folder=order.out / "training",
        seed=seed,
        name=f"subject {' '.join(map(str, order.subjects))}",
        sample=_sampler(model, data, base_folder),
        held_out=held_out,
    )
    if terms:
        if held_out:
            _log.info(*_ended(held_out, len(losses)))
        info = describe_checkpoint(
            order,
            trained_on,
            base_folder,
            recipe,
            "dynadiff",
            float(np.mean(losses[-200:])),
            terms.extended,
            held_out,
        )
        save_checkpoint(order.out, model.float(), info)


def _steady_loss(model: Dynadiff, batch_of: Callable[[NDArray[np.int64]], Batch], n: int) -> float:
    """The mean loss of ``n`` examples, alike at every call but for the model."""
    total = 0.0
    for start in range(0, n, _MEASURED_AT_ONCE):
        indices = np.arange(start, min(start + _MEASURED_AT_ONCE, n))
        batch = {name: values.to(model.null.device) for name, values in batch_of(indices).items()}
        total += len(indices) * float(model.steady_loss(batch, start))
    return total / n


def _ended(held_out: HeldOut, n_steps: int) -> tuple[str, int, float, int]:
    """A sentence on the end of a training that was measured, for the log."""
    best, loss = min(held_out.curve, key=lambda each: each[1])
    if held_out.reached:
        words = "on held-out presentations the loss falls no more after %d steps; lowest: %.4f, after %d"
    else:
        words = "on held-out presentations the loss still falls after %d steps; lowest: %.4f, after %d"
    return words, n_steps, loss, best


def _claim(order: Order, terms: Terms) -> Terms:
    """Write the terms of a new training, or check those of the training in the folder; return what they are.

    A training can be extended: terms that differ by more steps alone are written in place of those in the
    folder, and say where that was, if the learning rate depends on it.

    :raises TrainError: the folder holds a training with other terms; the message names the differences
    """
    path = order.out / "training" / "order.json"
    if not path.exists():
        if (order.out / "checkpoint.json").exists() or (order.out / "training" / "latest").exists():
            raise TrainError(f"{order.out} holds a checkpoint of another training; choose another --out")
        _write_terms(path, terms)
        return terms
    try:
        theirs = msgspec.json.decode(path.read_bytes(), type=Terms)
    except msgspec.MsgspecError as error:
        raise TrainError(
            f"{path}: expected a file written by this version of `train fit`: {error}; choose another --out, "
            "or remove the folder to start again"
        ) from error
    longer = _extended(theirs, terms.recipe.fit, steps_taken(order.out / "training"))
    terms = msgspec.structs.replace(terms, extended=longer.extended)
    if different := terms.differences(longer):
        raise TrainError(
            f"{order.out} holds a training with other {', '.join(different)}; choose another --out, or "
            "remove the folder to start again. A training can be given more steps, and nothing else"
        )
    _write_terms(path, terms)
    return terms


def _extended(terms: Terms, wanted: Training, taken: int) -> Terms:
    """The terms with as many steps as are wanted now, if these are more."""
    planned = terms.recipe.fit.steps
    if wanted.steps <= planned:
        return terms
    training = msgspec.structs.replace(terms.recipe.fit, steps=wanted.steps)
    recipe, extended = msgspec.structs.replace(terms.recipe, fit=training), list(terms.extended)
    falls = training.plateau is None
    if falls and taken and (taken not in dict(extended)):
        extended.append((taken, planned))
    return msgspec.structs.replace(terms, recipe=recipe, extended=extended)


def _write_terms(path: Path, terms: Terms) -> None:
    write_whole(path, msgspec.json.format(msgspec.json.encode(terms), indent=1).decode())


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
