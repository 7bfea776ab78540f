"""Fit a subject: windows, latents of what was shown, the single stage, the checkpoint."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray

from nsd import Layout, RunKey, Stimuli, read_roi, run_trials, runs, time_resolved_split
from nsd.sessions import TR_S
from train.brain import BrainModule
from train.dynadiff import CheckpointInfo, Dynadiff, add_lora, brain_config, save_checkpoint
from train.errors import TrainError
from train.loop import Batch, fit
from train.pretrain import encode_latents, load_picture_encoder
from train.recipe import Recipe
from train.windows import Windows, prepare

_log = logging.getLogger(__name__)


def fit_subject(root: Path, subject: int, recipe: Recipe, base: Path, out: Path, seed: int) -> None:
    """Train the decoder of one subject and write its checkpoint to ``out``.

    Whole runs are held out (the paper's time-resolved split), and so is every other presentation of a picture
    that a held-out run shows.

    :raises TrainError: when ``base`` is not a base model, or ``out`` holds another run.
    """
    if not (base / "image_unet" / "config.json").exists():
        raise TrainError(f"expected a base model in {base}, found none; make it with `python -m train base`")
    layout = Layout(root)
    train_keys, test_keys = time_resolved_split(runs(layout, subject), seed)
    windows, prior = prepare(layout, train_keys, recipe, out / "windows")
    chosen = trials_to_train_on(layout, windows, test_keys)
    _log.info("%d runs train, %d are held out; %d trials train", len(train_keys), len(test_keys), len(chosen))
    vae = AutoencoderKL.from_pretrained(base / "vae")
    images, place = np.unique(windows.images, return_inverse=True)
    with Stimuli(layout) as stimuli:
        latents = encode_latents(vae, stimuli.images(images.tolist()))
    roi = read_roi(layout, subject)
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(base / "image_unet")
    add_lora(unet, recipe.lora)
    _, null_NW = load_picture_encoder(base, recipe.base)
    brain = BrainModule(brain_config(recipe, roi.n_voxels))
    # The brain's tokens start around the base model's "no condition", which holds their mean and places.
    with torch.no_grad():
        brain.output.bias.copy_(null_NW.flatten())
    model = Dynadiff(brain, unet, null_NW, recipe)
    forms = [windows.forms[form] for form in recipe.preprocessing.train_on]

    def batch_of(examples: NDArray[np.int64]) -> Batch:
        form, which = np.divmod(examples, len(chosen))
        trials = chosen[which]
        stacked = np.stack([forms[f][trial] for f, trial in zip(form, trials, strict=True)])
        return {
            "windows": torch.from_numpy(stacked.astype(np.float32)),
            "subjects": torch.zeros(len(trials), dtype=torch.long),
            "latents": latents[place[trials]],
        }

    losses = fit(
        model,
        batch_of,
        len(forms) * len(chosen),
        recipe.fit,
        folder=out / "training",
        seed=seed,
        name=f"subject {subject}",
    )
    shutil.copy(layout.roi(subject), out / "roi.nii.gz")
    prior.save(out / "prior.npz")
    if (root / "synthetic.json").exists():
        shutil.copy(root / "synthetic.json", out)
    info = CheckpointInfo(
        subject=subject,
        seed=seed,
        tr_s=TR_S,
        n_voxels=roi.n_voxels,
        recipe=recipe,
        base=os.path.relpath(base.resolve(), out.resolve()),
        held_out_runs=[(key.subject, key.session, key.run) for key in test_keys],
        n_train_trials=len(chosen),
        last_loss=float(np.mean(losses[-200:])) if losses else None,
    )
    save_checkpoint(out, model.float(), info)


def trials_to_train_on(layout: Layout, windows: Windows, test_keys: list[RunKey]) -> NDArray[np.int64]:
    """Indices of the trials whose picture no held-out run shows."""
    held_out = [item.trial.image for item in run_trials(layout, test_keys)]
    return np.flatnonzero(~np.isin(windows.images, held_out))
