"""Decoding in torch: used by evaluation, and the reference for the exported graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from train.model.diffusion import make_sampler
from train.model.vae import decode_latents
from train.recipe import Diffusion

_MOST_AT_ONCE = 64
_PLACES_AT_ONCE = 4 * 64 * 64
"""Latent pixels in one batch: the UNet gets 64 pictures of the demo's size at once, or 4 of 512 px."""
Pictures = NDArray[np.uint8]
"""[n, H, W, 3]"""


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    conditions_BNW: Tensor,
    null_NW: Tensor,
    noise: Tensor,
    settings: Diffusion,
    start: Tensor | None = None,
    strength: float = 1.0,
    draws: list[torch.Generator] | None = None,
) -> Tensor:
    """The recipe's sampler with guidance (paper 2.2), from conditions ``[B, N, W]`` and ``noise`` to latents
    ``[B, c, h, w]``.

    :param start: latents to start from, with noise added, ``[B, c, h, w]``, as in diffusers' img2img
    :param strength: share of the steps to run from ``start``, counted from the last
    :param draws: of the noise that DDPM's steps add to each of the ``B``; DDIM adds none
    """
    scheduler = make_sampler(settings.sampler)
    scheduler.set_timesteps(settings.inference_steps)
    timesteps, latents = scheduler.timesteps, noise
    if start is not None:
        timesteps = timesteps[-steps_to_run(settings.inference_steps, strength) :]
        latents = scheduler.add_noise(start, noise, timesteps[:1])
    both = torch.cat([null_NW.expand_as(conditions_BNW), conditions_BNW])
    for timestep in timesteps:
        unguided, guided = unet(torch.cat([latents, latents]), timestep, both).sample.chunk(2)
        predicted = unguided + settings.guidance * (guided - unguided)
        latents = scheduler.step(predicted, timestep, latents, generator=draws).prev_sample
    return latents


def steps_to_run(n_steps: int, strength: float) -> int:
    """Number of last steps of a schedule that make up the share ``strength``, as in img2img."""
    return max(1, int(n_steps * strength))


@torch.no_grad()
def decode(
    condition_of: Callable[[slice], Tensor],
    n: int,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    null_NW: Tensor,
    settings: Diffusion,
    seed: int,
    name: str | None,
    start_of: Callable[[slice], Tensor] | None = None,
    strength: float = 1.0,
    trials: Sequence[int] | None = None,
) -> Pictures:
    """Decode ``n`` conditions, which ``condition_of`` returns by slices, into pictures ``[n, H, W, 3]``.

    All start from the same noise, as in the runtime. If ``start_of`` is given, they start from its latents
    with noise added, and ``strength`` is the share of the steps that are run. What DDPM's steps add is drawn
    for each trial by ``seed`` and its number, so a decode does not depend on the others.

    :param name: name of the progress bar; None for no bar
    :param trials: a number for each trial, by default 0 to n - 1
    """
    size = unet.config.sample_size
    noise = torch.randn(1, unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(seed))
    noise = noise.to(null_NW)
    at_once = min(_MOST_AT_ONCE, max(1, _PLACES_AT_ONCE // size**2))
    pictures = []
    for start in tqdm(range(0, n, at_once), desc=name, unit="batch", disable=name is None):
        part = slice(start, min(start + at_once, n))
        conditions, latents = condition_of(part), start_of(part) if start_of else None
        noises = noise.repeat(len(conditions), 1, 1, 1)
        draws = [_draw(seed, trial) for trial in (range(n) if trials is None else trials)[part]]
        latents = sample(unet, conditions, null_NW, noises, settings, latents, strength, draws)
        pictures.append(decode_latents(vae, latents))
    return np.concatenate(pictures)


def _draw(seed: int, trial: int) -> torch.Generator:
    # 32 bits, because torch's CPU generator uses no more.
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, trial]).generate_state(1)[0]))
