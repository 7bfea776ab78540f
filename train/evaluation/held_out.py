"""Chooses the held-out presentations that test a decoder, and decodes them in torch.

Legend: V voxels, T volumes of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsd import Layout, NsdError, Stimuli
from realtime.bundle.spec import Window
from train.checkpoints.checkpoint import Checkpoint
from train.data.cache import Cache, prepare, subject_cache
from train.data.dataset import averaged_windows
from train.data.trials import Trials, grouped, inside_run, one_of_each, read_volumes, recorded
from train.data.validation import validation_trials
from train.errors import TrainError
from train.model.base_model import load_unet
from train.model.linear_brain import LinearBrain
from train.model.picture_encoder import load_picture_encoder
from train.model.sample import Pictures, decode
from train.model.vae import to_tensor
from train.recipe import Recipe, demo_base


def held_out_groups(
    cache: Cache, recipe: Recipe, windows: Sequence[Window], *, average: bool, seed: int, n_groups: int
) -> list[Trials]:
    """Held-out presentations to decode, drawn by ``seed``: one per group, or all of an image.

    Where images are held out, single trials are one presentation of each image (paper 2.3); where runs are
    held out, all presentations of these runs. A presentation is left out when one of its windows reaches
    beyond the run, or holds volumes that NSD's authors repaired. None is left out for being early in its run.
    Those that a training was measured on while it went on are left out as well.

    :param windows: the windows that will be decoded
    :raises TrainError: fewer than two groups are left
    """
    trials = np.setdiff1d(np.flatnonzero(cache.is_test), validation_trials(cache, recipe))
    if "betas" in recipe.preprocessing.train_on:
        trials = recorded(cache, trials, read_volumes(recipe))
    else:
        for window in windows:
            trials = recorded(cache, inside_run(cache, trials, window), window)
    if average:
        groups = grouped(cache, trials)
    elif recipe.split == "standard":
        groups = one_of_each(cache, trials, seed)
    else:
        groups = list(trials[:, None])
    if len(groups) < 2:
        raise TrainError(
            f"expected at least two held-out presentations to decode, found {len(groups)}; use more runs, or "
            "windows that fit into them"
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(len(groups))[:n_groups])
    return [groups[index] for index in chosen]


def images_of(cache: Cache, groups: Sequence[Trials]) -> NDArray[np.int64]:
    """The 0-based image of each group."""
    return np.array([cache.images[group[0]] for group in groups], dtype=np.int64)


def held_out_windows(
    checkpoint: Checkpoint, root: Path, caches: Path | None, n: int, seed: int
) -> tuple[NDArray[np.float16], Pictures]:
    """At most ``n`` held-out windows ``[n, V, T]``, preprocessed as in the runtime, and the pictures shown.

    :param root: root of the data set
    :param caches: folder of prepared recordings; by default in the checkpoint's folder, as in evaluation
    :raises TrainError: the checkpoint was trained on other recordings, or these cannot be read
    """
    recipe, number = checkpoint.recipe, checkpoint.subject.number
    try:
        folder = subject_cache(caches or checkpoint.folder / "cache", number)
        info = checkpoint.info  # with the priors that the bundle has: those of the training
        cache = prepare(root, number, recipe, folder, seed=info.seed, n_sessions=info.n_sessions)
        groups = held_out_groups(cache, recipe, [recipe.window], average=False, seed=seed, n_groups=n)
        with Stimuli(Layout(root)) as stimuli:
            shown = stimuli.images(images_of(cache, groups).tolist())
    except NsdError as error:
        raise TrainError(str(error)) from error
    return averaged_windows(cache, groups, recipe.window, "causal", recipe), shown


def decode_windows(
    checkpoint: Checkpoint,
    windows: NDArray[np.float16],
    seed: int,
    name: str,
    trials: Sequence[int] | None = None,
) -> Pictures:
    """Decode windows ``[n, V, T]`` in torch.

    :param trials: a number for each window, which goes into the seed of a sampler that adds noise
    """
    brain, device = checkpoint.brain, checkpoint.null_NW.device

    def window_of(part: slice) -> Tensor:
        return torch.from_numpy(windows[part].astype(np.float32)).to(device)

    def condition_of(part: slice) -> Tensor:
        window = window_of(part)
        tokens: Tensor = brain(window, torch.zeros(len(window), dtype=torch.long, device=device))
        return tokens

    return decode(
        condition_of,
        len(windows),
        checkpoint.unet,
        checkpoint.vae,
        checkpoint.null_NW,
        checkpoint.recipe.diffusion,
        seed,
        name,
        (lambda part: brain.start(window_of(part))) if isinstance(brain, LinearBrain) else None,
        checkpoint.recipe.ridge.diffusion_strength,
        trials,
    )


def decode_pictures(
    checkpoint: Checkpoint, pictures: Pictures, seed: int, trials: Sequence[int] | None = None
) -> Pictures:
    """Decode the tokens of the true pictures with the base model, without an adapter: the ceiling.

    :param trials: as for :func:`decode_windows`
    """
    device = checkpoint.null_NW.device
    encoder, null_NW = load_picture_encoder(checkpoint.base_folder, demo_base(checkpoint.recipe))
    encoder, base = encoder.to(device), load_unet(checkpoint.base_folder).to(device)

    def condition_of(part: slice) -> Tensor:
        tokens: Tensor = encoder(to_tensor(pictures[part]).to(device))
        return tokens

    settings = checkpoint.recipe.diffusion
    return decode(
        condition_of,
        len(pictures),
        base,
        checkpoint.vae,
        null_NW.to(device),
        settings,
        seed,
        "ceiling",
        trials=trials,
    )
