"""Decoding in torch: the reference for what the exported graphs compute, and what evaluation uses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from train.diffusion import make_scheduler
from train.pretrain import decode_latents
from train.recipe import Diffusion

_BATCH = 64


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel, conditions_BNW: Tensor, null_NW: Tensor, noise: Tensor, settings: Diffusion
) -> Tensor:
    """DDIM with guidance (paper 2.2): conditions ``[B, N, W]`` and ``noise`` to latents ``[B, c, h, w]``."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(settings.inference_steps)
    latents = noise
    both = torch.cat([null_NW.expand_as(conditions_BNW), conditions_BNW])
    for timestep in scheduler.timesteps:
        unguided, guided = unet(torch.cat([latents, latents]), timestep, both).sample.chunk(2)
        predicted = unguided + settings.guidance * (guided - unguided)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents


@torch.no_grad()
def decode(
    condition_of: Callable[[slice], Tensor],
    n: int,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    null_NW: Tensor,
    settings: Diffusion,
    seed: int,
    name: str,
) -> NDArray[np.uint8]:
    """Pictures ``[n, H, W, 3]`` of ``n`` conditions, which ``condition_of`` gives by slices.

    All start from the same noise, as they do in the runtime.
    """
    size = unet.config.sample_size
    noise = torch.randn(1, unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(seed))
    pictures = []
    for start in tqdm(range(0, n, _BATCH), desc=name, unit="batch"):
        conditions = condition_of(slice(start, min(start + _BATCH, n)))
        latents = sample(unet, conditions, null_NW, noise.repeat(len(conditions), 1, 1, 1), settings)
        pictures.append(decode_latents(vae, latents))
    return np.concatenate(pictures)
