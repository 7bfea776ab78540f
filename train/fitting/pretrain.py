"""Trains the demo's base model: a VAE and an image-conditioned UNet, trained on stimuli once, then frozen.

It takes the place of Versatile Diffusion in the paper, and has diffusers' classes and layout.

    OUT/vae, OUT/image_unet          as save_pretrained writes them
    OUT/picture_encoder.safetensors  with the null condition
    OUT/base.json                    recipe, subject whose pictures it has not seen, and figures

Three trainings follow one another: the VAE, the picture encoder, and the UNet on the latents and the tokens
of these two, which are frozen then.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from nsd import N_IMAGES, Layout, Stimuli, read_expdesign
from realtime.atomic import whole, write_whole
from train.errors import TrainError
from train.loop.distributed import n_processes
from train.loop.loop import fit
from train.model.base_model import UNET_FOLDER, VAE_FOLDER, load_vae, make_unet, make_vae
from train.model.base_of_recipe import BASE_FILE
from train.model.batch import Batch
from train.model.diffusion import DiffusionLoss, drop_conditions, uniform_timesteps
from train.model.picture_encoder import PictureAutoencoder, PictureEncoder, disturb, encode_tokens
from train.model.vae import VaeObjective, encode_latents, rebuilt_psnr_db, to_tensor
from train.recipe import DemoBase, Recipe, demo_base
from train.store.fingerprints import digest
from train.store.lock import alone_in

_log = logging.getLogger(__name__)
_HELD_OUT = 256


@dataclass(frozen=True, kw_only=True)
class BasePictures:
    """Stimuli to train on and other stimuli to measure on; each uint8 ``[N, H, W, 3]``."""

    train: NDArray[np.uint8]
    held_out: NDArray[np.uint8]
    subject: int
    """The subject who is shown none of them; others may be."""


def base_pictures(root: Path, subject: int, n_pictures: int, seed: int) -> BasePictures:
    """Stimuli that ``subject`` is never shown: ``n_pictures`` to train on, and up to 256 held out.

    :raises TrainError: there are no more than ``n_pictures`` such stimuli
    """
    layout = Layout(root)
    with Stimuli(layout) as stimuli:
        unseen = np.setdiff1d(stimuli.drawn, read_expdesign(layout).subject_images[subject - 1])
        if len(unseen) <= n_pictures:
            raise TrainError(
                f"expected more than {n_pictures} stimuli that subject {subject} is not shown, to train and "
                f"to measure on, found {len(unseen)}; `python -m sim synthesize --pictures {N_IMAGES}` draws "
                "all of a synthetic subject"
            )
        rng = np.random.default_rng(seed)
        chosen = rng.choice(unseen, n_pictures, replace=False)
        others = np.setdiff1d(unseen, chosen)
        held_out = rng.choice(others, min(_HELD_OUT, len(others)), replace=False)
        train, measured = (stimuli.images(np.sort(images).tolist()) for images in (chosen, held_out))
        return BasePictures(train=train, held_out=measured, subject=subject)


class BaseObjective(nn.Module):
    """The diffusion loss of latents given the tokens of their picture with noise added.

    ``null_NW`` is the initial value of the null condition.
    """

    def __init__(self, unet: UNet2DConditionModel, null_NW: Tensor, recipe: Recipe) -> None:
        super().__init__()
        self.unet = unet
        self.null = nn.Parameter(null_NW.clone())
        self.loss = DiffusionLoss(recipe.diffusion.offset_noise, uniform_timesteps)
        self.noise = demo_base(recipe).condition_noise
        self.dropout = recipe.diffusion.condition_dropout

    def forward(self, batch: Batch) -> Tensor:
        """The loss of latents ``[B, c, h, w]`` with tokens ``[B, N, W]``."""
        tokens = disturb(batch["tokens"].to(self.null.dtype), self.noise)
        loss: Tensor = self.loss(
            self.unet, batch["latents"], drop_conditions(tokens, self.null, self.dropout)
        )
        return loss


def train_vae(pictures: NDArray[np.uint8], base: DemoBase, out: Path, seed: int) -> AutoencoderKL:
    """Train and save the VAE, or load it if it has been trained already."""
    if (out / VAE_FOLDER / "config.json").exists():
        return load_vae(out)
    torch.manual_seed(seed)
    vae = make_vae(base)
    fit(
        VaeObjective(vae),
        lambda chosen: {"pictures": to_tensor(pictures[np.sort(chosen)])},
        len(pictures),
        base.vae_training,
        folder=out / "training" / "vae",
        seed=seed,
        name="VAE",
    )
    vae = vae.float()
    vae.register_to_config(scaling_factor=1.0)
    vae.register_to_config(scaling_factor=1.0 / float(encode_latents(vae, pictures[:2048]).std()))
    with whole(out / VAE_FOLDER) as partial:
        vae.save_pretrained(partial)
    return vae


def train_encoder(pictures: NDArray[np.uint8], base: DemoBase, out: Path, seed: int) -> PictureEncoder:
    """Train the picture encoder, or load it from its training folder if it has been trained already."""
    torch.manual_seed(seed + 2)
    encoder = PictureEncoder(base.token_width)
    fit(
        PictureAutoencoder(encoder, base.token_width, base.condition_noise),
        lambda chosen: {"pictures": to_tensor(pictures[np.sort(chosen)])},
        len(pictures),
        base.encoder_training,
        folder=out / "training" / "encoder",
        seed=seed,
        name="picture encoder",
    )
    return encoder.float().eval().requires_grad_(False)


def train_base(pictures: BasePictures, recipe: Recipe, out: Path, seed: int) -> None:
    """Train VAE, picture encoder and UNet on pictures of 64 px, and save them under ``out``.

    :raises TrainError: several processes were started, another process is writing in ``out``, or ``out``
        holds a base model that was made from something else
    """
    base = demo_base(recipe)
    if n_processes() > 1:
        raise TrainError(
            "expected one process, because the demo's base model is small; start it without a launcher"
        )
    with alone_in(out, wait=False):
        _claim(out, pictures, recipe, seed)
        _train_base(pictures, base, recipe, out, seed)


def _claim(out: Path, pictures: BasePictures, recipe: Recipe, seed: int) -> None:
    """Write what this base model is made from, or check that the one in the folder was made from the same.

    :raises TrainError: it was made from something else; the message names the differences
    """
    ours = {
        "base": digest(recipe.base),
        "diffusion": digest([recipe.diffusion.offset_noise, recipe.diffusion.condition_dropout]),
        "pictures": hashlib.sha256(pictures.train.tobytes()).hexdigest(),
        "seed": seed,
    }
    path = out / "training" / "order.json"
    theirs = json.loads(path.read_text()) if path.exists() else ours
    different = [name for name in ours if theirs.get(name) != ours[name]]
    if different:
        raise TrainError(
            f"{out} holds a base model with other {', '.join(different)}; choose another --out, or remove "
            "the folder to start again"
        )
    write_whole(path, json.dumps(ours, indent=1))


def _train_base(pictures: BasePictures, base: DemoBase, recipe: Recipe, out: Path, seed: int) -> None:
    train = pictures.train
    vae = train_vae(train, base, out, seed)
    psnr_db = rebuilt_psnr_db(vae, pictures.held_out)
    _log.info("VAE: %.1f dB PSNR on held-out pictures", psnr_db)
    encoder = train_encoder(train, base, out, seed)
    latents, tokens = encode_latents(vae, train), encode_tokens(encoder, train)
    torch.manual_seed(seed + 1)
    objective = BaseObjective(make_unet(base), tokens.mean(dim=0), recipe)
    losses = fit(
        objective,
        lambda chosen: {"tokens": tokens[chosen], "latents": latents[chosen]},
        len(train),
        base.unet_training,
        folder=out / "training" / "unet",
        seed=seed,
        name="base UNet",
    )
    objective = objective.float()
    weights = {"null_condition": objective.null.detach()} | encoder.state_dict()
    with whole(out / "picture_encoder.safetensors") as partial:
        save_file({key: value.contiguous() for key, value in weights.items()}, partial)
    # The UNet is the last that `fit` needs, so that a folder with a UNet is complete.
    with whole(out / UNET_FOLDER) as partial:
        objective.unet.save_pretrained(partial)
    figures = {
        "vae_psnr_db_held_out": psnr_db,
        "last_loss": float(np.mean(losses[-100:])) if losses else None,
    }
    made = {
        "recipe": msgspec.to_builtins(recipe),
        "subject": pictures.subject,
        "seed": seed,
        "figures": figures,
    }
    write_whole(out / BASE_FILE, json.dumps(made, indent=2))
