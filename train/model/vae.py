"""The VAE between pictures and latents: its training objective, encoding and decoding.

Legend: N or B pictures, c, h, w latents.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from train.model.batch import Batch

_ENCODED_AT_ONCE = 64
_DECODED_PLACES = 64 * 8 * 8


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures ``[B, H, W, 3]`` in 0..255 to ``[B, 3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


class VaeObjective(nn.Module):
    """Reconstruction error, and a small KL term that keeps the latents near a Gaussian."""

    kl_weight = 1e-5

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, batch: Batch) -> Tensor:
        """The loss of pictures ``[B, 3, H, W]``."""
        pictures = batch["pictures"].to(self.vae.dtype)
        latents = self.vae.encode(pictures).latent_dist
        rebuilt = self.vae.decode(latents.sample()).sample.float()
        # Squared error for the colours of areas, absolute error for sharp outlines.
        difference = rebuilt - pictures.float()
        error: Tensor = difference.abs().mean() + difference.square().mean()
        divergence: Tensor = latents.kl().mean()
        return error + self.kl_weight * divergence


def encode_latents(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> Tensor:
    """Latents of pictures, scaled to unit variance for the UNet: float32 ``[N, c, h, w]``.

    They are the modes of :func:`encode_posterior`.
    """
    return encode_posterior(vae, pictures).chunk(2, dim=1)[0].contiguous()


@torch.no_grad()
def encode_posterior(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> Tensor:
    """The Gaussian of each picture's latents: means, then SDs, scaled alike, float32 ``[N, 2 c, h, w]``."""
    vae.eval()
    shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor
    parts = []
    for start in range(0, len(pictures), _ENCODED_AT_ONCE):
        part = to_tensor(pictures[start : start + _ENCODED_AT_ONCE]).to(vae.device, vae.dtype)
        found = vae.encode(part).latent_dist
        parts.append(torch.cat([(found.mean.float() - shift) * scale, found.std.float() * scale], dim=1))
    return torch.cat(parts)


def draw_latents(posterior: Tensor) -> Tensor:
    """A sample ``[N, c, h, w]`` of Gaussians ``[N, 2 c, h, w]``, by torch's global generator."""
    mean, sd = posterior.chunk(2, dim=1)
    # Not randn_like, whose numbers depend on how a tensor lies in memory.
    return mean + sd * torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor) -> NDArray[np.uint8]:
    """Pictures of latents: uint8 ``[N, H, W, 3]``."""
    vae.eval()
    shift = vae.config.shift_factor or 0.0
    scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor + shift
    # 64 pictures of the demo's size at once, or one of 512 px, where the last layers take gigabytes.
    at_once = max(1, _DECODED_PLACES // (latents.shape[2] * latents.shape[3]))
    parts = []
    for part in scaled.split(at_once):
        pictures = vae.decode(part).sample.float()
        levels = ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        parts.append(levels.permute(0, 2, 3, 1).cpu())
    return np.asarray(torch.cat(parts), dtype=np.uint8)


def rebuilt_psnr_db(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> float:
    """PSNR of pictures ``[N, H, W, 3]`` that are encoded and decoded again."""
    rebuilt = decode_latents(vae, encode_latents(vae, pictures)).astype(np.float32)
    return float(10 * np.log10(255**2 / np.mean((rebuilt - pictures) ** 2)))
