"""Fit a subject: windows, latents of what was shown, the single stage, the checkpoint."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from nsd import Layout, Stimuli
from nsd.sessions import TR_S
from train.base import find_base, is_on_hub, load_unet, load_vae
from train.brain import BrainModule
from train.cache import Cache, prepare
from train.dataset import WindowData, examples
from train.dynadiff import CheckpointInfo, Dynadiff, brain_config, save_checkpoint
from train.finetune import set_trainable
from train.loop import Batch, fit
from train.pretrain import encode_latents, load_picture_encoder
from train.recipe import DemoBase, Recipe

_ENCODE_BATCH = 32
_log = logging.getLogger(__name__)


def fit_subject(
    root: Path,
    subject: int,
    recipe: Recipe,
    base: str | Path,
    out: Path,
    seed: int,
    cache_folder: Path | None = None,
) -> None:
    """Train the decoder of one subject and write its checkpoint to ``out``.

    Whole runs are held out (the paper's time-resolved split), and so is every other presentation of a picture
    that a held-out run shows.

    :param base: folder of the base model, or its name on the hub
    :param cache_folder: of the prepared recordings, made where they are not there; by default in ``out``
    :raises TrainError: when ``base`` is not a base model, or ``out`` holds another run.
    """
    base_folder = find_base(base)
    layout = Layout(root)
    cache = prepare(root, subject, recipe, cache_folder or out / "cache", seed=seed)
    chosen = trials_to_train_on(cache)
    forms = [examples(cache, chosen, recipe.window, form) for form in recipe.preprocessing.train_on]
    data = WindowData(forms, recipe.window.length_volumes)
    _log.info(
        "%d runs train, %d are held out; %d trials train",
        len(cache.train_runs),
        len(cache.test_runs),
        len(chosen),
    )
    model = untrained_model(recipe, base_folder, data.n_voxels, seed)
    images, place = np.unique(data.images, return_inverse=True)
    with Stimuli(layout) as stimuli:
        vae, latent_px = load_vae(base_folder), model.unet.config.sample_size
        latents = encode_stimuli(stimuli, images.tolist(), vae, latent_px)

    def batch_of(indices: NDArray[np.int64]) -> Batch:
        windows, _, subjects = data.batch(indices)
        return {"windows": windows.float(), "subjects": subjects, "latents": latents[place[indices]]}

    losses = fit(
        model,
        batch_of,
        len(data),
        recipe.fit,
        folder=out / "training",
        seed=seed,
        name=f"subject {subject}",
    )
    shutil.copy(layout.roi(subject), out / "roi.nii.gz")
    cache.prior.save(out / "prior.npz")
    if (root / "synthetic.json").exists():
        shutil.copy(root / "synthetic.json", out)
    info = CheckpointInfo(
        subject=subject,
        seed=seed,
        tr_s=TR_S,
        n_voxels=data.n_voxels,
        recipe=recipe,
        base=str(base) if is_on_hub(base) else os.path.relpath(base_folder.resolve(), out.resolve()),
        held_out_runs=[(key.subject, key.session, key.run) for key in cache.test_runs],
        n_train_trials=len(chosen),
        last_loss=float(np.mean(losses[-200:])) if losses else None,
    )
    save_checkpoint(out, model.float(), info)


def untrained_model(recipe: Recipe, base_folder: Path, n_voxels: int, seed: int) -> Dynadiff:
    """The model before its first step: the base model's UNet, adapters without effect, a new brain module."""
    torch.manual_seed(seed)
    unet = load_unet(base_folder)
    set_trainable(unet, recipe.finetune)
    null_NW = starting_null(base_folder, recipe)
    brain = BrainModule(brain_config(recipe, n_voxels))
    # The brain's tokens start around "no condition"; the demo's base model keeps their mean and places in it.
    with torch.no_grad():
        brain.output.bias.copy_(null_NW.flatten())
    return Dynadiff(brain, unet, null_NW, recipe)


def encode_stimuli(stimuli: Stimuli, images: Sequence[int], vae: AutoencoderKL, latent_px: int) -> Tensor:
    """Latents ``[N, c, latent_px, latent_px]`` of pictures, brought to the size that makes latents of it."""
    size_px = latent_px << (len(vae.config.block_out_channels) - 1)
    parts = []
    for start in tqdm(range(0, len(images), _ENCODE_BATCH), desc="latents", unit="batch"):
        pictures = stimuli.images(images[start : start + _ENCODE_BATCH])
        if pictures.shape[1:3] != (size_px, size_px):
            resized = [
                cv2.resize(picture, (size_px, size_px), interpolation=cv2.INTER_CUBIC) for picture in pictures
            ]
            pictures = np.stack(resized).astype(np.uint8)
        parts.append(encode_latents(vae, pictures))
    return torch.cat(parts)


def starting_null(base: Path, recipe: Recipe) -> Tensor:
    """What stands for "no condition" before training, ``[N, W]``: what the base model learned, or zeros."""
    if isinstance(recipe.base, DemoBase):
        return load_picture_encoder(base, recipe.base)[1]
    return torch.zeros(recipe.base.n_tokens, recipe.base.token_width)


def trials_to_train_on(cache: Cache) -> NDArray[np.int64]:
    """Indices of the presentations in training runs whose picture no held-out run shows."""
    trains = set(cache.train_runs)
    in_training = np.array([item.run in trains for item in cache.trials])
    images = np.array([item.trial.image for item in cache.trials])
    return np.flatnonzero(in_training & ~np.isin(images, images[~in_training]))
