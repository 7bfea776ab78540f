"""Latents of the stimuli, computed once for each base model and kept with the caches.

    FOLDER/latents-<hash>.safetensors   images int64 [N], sorted, and latents float32 [N, c, h, w]

The hash is the fingerprint of the VAE, the stimuli, the size of the latents, and of the recipe's settings
where they are not the default ones. Where the recipe takes samples of the VAE's posterior, the latents are
its means and SDs, [N, 2 c, h, w].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from nsd import Layout, Stimuli
from realtime.atomic import whole
from train.model.base_model import load_vae
from train.model.vae import encode_latents, encode_posterior
from train.recipe import Latents
from train.store.fingerprints import digest, pictures_identity, vae_identity
from train.store.lock import alone_in

_MOST_AT_ONCE = 32
_PIXELS_AT_ONCE = 4 * 512 * 512
"""Of one batch: 32 pictures of the demo's size, or 4 of 512 px, which take gigabytes of memory."""


_INTERPOLATION = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}
AS_EVER = Latents()


def shown_latents(
    layout: Layout,
    images: NDArray[np.int64],
    base: Path,
    latent_px: int,
    folder: Path,
    settings: Latents = AS_EVER,
) -> Tensor:
    """Latents ``[N, c, latent_px, latent_px]`` of stimuli, read from ``folder`` as far as it has them.

    Processes that share ``folder`` wait for one another, so that each picture is encoded once.

    :param images: 0-based images, sorted and unique
    :param settings: with samples of the posterior, its means and SDs are returned, ``2 c`` in place of ``c``
    """
    special = [] if settings == AS_EVER else [settings]
    made_from = digest([vae_identity(base), pictures_identity(layout), latent_px, *special])
    with alone_in(folder, wait=True):
        path = folder / f"latents-{made_from}.safetensors"
        known = _encoded(layout, images, base, latent_px, path, settings)
    return known["latents"][torch.from_numpy(np.searchsorted(known["images"].numpy(), images))]


def _encoded(
    layout: Layout, images: NDArray[np.int64], base: Path, latent_px: int, path: Path, settings: Latents
) -> dict[str, Tensor]:
    """The content of ``path`` after all of ``images`` have been added to it."""
    known: dict[str, Tensor] = {"images": torch.zeros(0, dtype=torch.long)}
    if path.exists():
        known = load_file(path)
    new = np.setdiff1d(images, known["images"].numpy())
    if not len(new):
        return known
    vae = load_vae(base).to("cuda" if torch.cuda.is_available() else "cpu")
    with Stimuli(layout) as stimuli:
        latents = encode_stimuli(stimuli, new.tolist(), vae, latent_px, settings)
    every = torch.cat([known["images"], torch.from_numpy(new)])
    order = every.argsort()
    values = torch.cat([known["latents"], latents]) if "latents" in known else latents
    known = {"images": every[order], "latents": values[order].contiguous()}
    with whole(path) as partial:
        save_file(known, partial)
    return known


def encode_stimuli(
    stimuli: Stimuli,
    images: Sequence[int],
    vae: AutoencoderKL,
    latent_px: int,
    settings: Latents = AS_EVER,
) -> Tensor:
    """Latents ``[N, c, latent_px, latent_px]`` of pictures, which are resized to match, as in
    :func:`shown_latents`.
    """
    encode = encode_posterior if settings.posterior == "sample" else encode_latents
    interpolation = _INTERPOLATION[settings.resampling]
    size_px = latent_px << (len(vae.config.block_out_channels) - 1)
    at_once = min(_MOST_AT_ONCE, max(1, _PIXELS_AT_ONCE // size_px**2))
    parts = []
    for start in tqdm(range(0, len(images), at_once), desc="latents", unit="batch"):
        pictures = stimuli.images(images[start : start + at_once])
        if pictures.shape[1:3] != (size_px, size_px):
            resized = [
                cv2.resize(picture, (size_px, size_px), interpolation=interpolation) for picture in pictures
            ]
            pictures = np.stack(resized).astype(np.uint8)
        parts.append(encode(vae, pictures).cpu())
    return torch.cat(parts)
