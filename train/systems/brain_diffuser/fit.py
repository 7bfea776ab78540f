"""Brain-Diffuser (Ozcelik & VanRullen 2023) as the paper adapts it: the baseline of its tables.

Two ridge regressions from the flattened window predict the condition tokens and the latents of the seen
picture. To decode, noise is added to the predicted latents, up to three quarters of the schedule, and the
untuned base model denoises them under the predicted tokens. Two parts of Brain-Diffuser differ here: captions
are left out, because Dynadiff has none, and the base model's VAE replaces the VDVAE of the first stage.

The result is a checkpoint (:mod:`train.checkpoints.checkpoint`) whose ``method`` is ``brain-diffuser``.

Legend: V voxels, T volumes of a window, N tokens, W token width, m pictures, R rank.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsd import Layout, Stimuli
from train.checkpoints.checkpoint import write_checkpoint
from train.data.dataset import WindowData
from train.data.latents import shown_latents
from train.errors import TrainError
from train.fitting.job import Order, describe_checkpoint, training_set
from train.loop.distributed import n_processes
from train.model.base_model import latent_size_px
from train.model.base_of_recipe import base_of_recipe, warn_of_seen_pictures
from train.model.linear_brain import LinearBrain, LinearConfig, LowRank, flattened
from train.recipe import Recipe
from train.store.lock import alone_in
from train.systems.brain_diffuser.pca import Components, leading_components
from train.systems.brain_diffuser.ridge import Fit, Windows, fit_ridge
from train.systems.brain_diffuser.tokens import (
    ENCODER_FOLDER,
    PROCESSOR_FOLDER,
    load_token_encoder,
    stimulus_tokens,
)

_BLOCK = 4096
_log = logging.getLogger(__name__)


def fit_baseline(order: Order) -> None:
    """Fit the baseline of one subject and write its checkpoint.

    It uses the trials that :func:`train.fitting.fit.fit_subjects` trains on.

    :raises TrainError: several processes or subjects or a checkpoint to start from were given, the base model
        cannot be read or has no picture encoder, or ``out`` holds a checkpoint or is being written to
    """
    if n_processes() > 1:
        raise TrainError(
            f"expected one process, found {n_processes()}, over which a ridge regression is not divided; "
            "start it without a launcher, as `python -m train ridge`"
        )
    if len(order.subjects) != 1 or order.pretrained:
        raise TrainError(
            "expected one subject and no --from; the baseline is linear, so fit each subject alone"
        )
    base_folder = base_of_recipe(order.recipe, order.base, (ENCODER_FOLDER, PROCESSOR_FOLDER))
    warn_of_seen_pictures(base_folder, order.subjects)
    with alone_in(order.out, wait=False):
        _fit(order, base_folder)


def _fit(order: Order, base_folder: Path) -> None:
    recipe, out = order.recipe, order.out
    if (out / "checkpoint.json").exists():
        raise TrainError(f"{out} already holds a checkpoint; choose another --out")
    layout, trained_on = Layout(order.root), training_set(order)
    data = trained_on.data
    images, place, times = np.unique(data.images, return_inverse=True, return_counts=True)
    tokens_of, null_NW = load_token_encoder(base_folder, recipe.base)
    with Stimuli(layout) as stimuli:
        tokens = stimulus_tokens(stimuli, images.tolist(), tokens_of)
    modes = msgspec.structs.replace(recipe.latents, posterior="mode")
    latents = shown_latents(
        layout, images, base_folder, latent_size_px(base_folder), order.cache_folder, modes
    )
    outputs = {"condition": tokens, "latents": latents.flatten(1).numpy()}
    parts = {
        name: leading_components(array, times.astype(np.float64), recipe.ridge.components)
        for name, array in outputs.items()
    }
    fit = _regress(data, place, list(parts.values()), recipe, order.seed)
    brain = as_brain(fit, parts, data, null_NW, latents)
    for name, strength, explained in zip(parts, fit.strengths, fit.explained, strict=True):
        _log.info("%s: strength %g explains %.1f %% of held-out variance", name, strength, 100 * explained)
    recipe = msgspec.structs.replace(recipe, finetune=msgspec.structs.replace(recipe.finetune, layers="none"))
    info = describe_checkpoint(order, trained_on, base_folder, recipe, "brain-diffuser")
    write_checkpoint(out, brain, null_NW, info)


def _regress(
    data: WindowData, place: NDArray[np.int64], parts: list[Components], recipe: Recipe, seed: int
) -> Fit:
    """Regress the components' scores on windows; a random share of the pictures chooses the strengths."""
    scores = np.concatenate([part.scores for part in parts], axis=1)
    n_pictures = len(scores)
    n_held_out = max(1, round(recipe.ridge.held_out * n_pictures))
    drawn = np.random.default_rng(seed).permutation(n_pictures)[:n_held_out]
    ends = np.cumsum([part.scores.shape[1] for part in parts]).tolist()
    return fit_ridge(
        Windows(
            n=len(data),
            width=data.n_voxels * recipe.window.length_volumes,
            read=lambda rows: flattened(data.batch(rows)[0]).float().numpy(),
        ),
        scores[place],
        np.isin(place, drawn),
        recipe.ridge.strengths,
        [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)],
    )


def as_brain(
    fit: Fit, parts: dict[str, Components], data: WindowData, null_NW: Tensor, latents: Tensor
) -> LinearBrain:
    """The two regressions as a brain module."""
    ranks = [len(part.axes) for part in parts.values()]
    config = LinearConfig(
        n_voxels=data.n_voxels,
        n_volumes=len(fit.weights) // data.n_voxels,
        condition_shape=(null_NW.shape[0], null_NW.shape[1]),
        latent_shape=(latents.shape[1], latents.shape[2], latents.shape[3]),
        condition_rank=ranks[0],
        latent_rank=ranks[1],
    )
    brain = LinearBrain(config)
    groups = (slice(0, ranks[0]), slice(ranks[0], None))
    for layer, part, group in zip((brain.condition, brain.latents), parts.values(), groups, strict=True):
        _set_weights(layer, fit, group, part)
    return brain.eval()


def _set_weights(layer: LowRank, fit: Fit, group: slice, part: Components) -> None:
    """Set the weights from scores to outputs, each output rescaled to its SD in the training pictures.

    A ridge regression predicts less variance than the outputs have. Brain-Diffuser restores it: it divides
    each output by the SD of its predictions and multiplies it by the SD of the true values. Its code takes
    the former from the test set. Here it is taken from the held-out predictions, because a live run has no
    test set.
    """
    predicted = fit.held_out[:, group]
    score_sd = np.maximum(predicted.std(axis=0), np.finfo(np.float32).tiny)
    gain = np.ones_like(part.sd)
    for start in range(0, len(gain), _BLOCK):
        columns = slice(start, start + _BLOCK)
        spread = (predicted @ part.axes[:, columns]).std(axis=0)
        gain[columns] = np.where(spread > 0, part.sd[columns] / np.maximum(spread, 1e-12), 1)
    layer.first.copy_(torch.from_numpy(fit.weights[:, group] / score_sd))
    layer.second.copy_(torch.from_numpy(part.axes * score_sd[:, None] * gain))
    layer.bias.copy_(torch.from_numpy(part.mean + gain * (fit.intercept[group] @ part.axes)))
