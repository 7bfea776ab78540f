"""The diffusion loss of the base model's training and of Dynadiff's stage (paper 2.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1's noise schedule, as Versatile Diffusion uses it."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def cubic_timesteps(uniform_B: Tensor, n_timesteps: int = 1000) -> Tensor:
    """Timesteps ``(1 - u^3) * n``: more noisy ones, where the condition matters most (paper 2.2)."""
    return ((1 - uniform_B**3) * n_timesteps).long().clamp(max=n_timesteps - 1)


def uniform_timesteps(uniform_B: Tensor, n_timesteps: int = 1000) -> Tensor:
    """Uniform timesteps, as base models are pretrained with; little noise teaches fine detail."""
    return (uniform_B * n_timesteps).long().clamp(max=n_timesteps - 1)


def offset_noise(like: Tensor, strength: float) -> Tensor:
    """Gaussian noise per element, plus ``strength`` times Gaussian noise per sample and channel."""
    noise = torch.randn_like(like)
    return noise + strength * torch.randn(*like.shape[:2], 1, 1, dtype=like.dtype, device=like.device)


def drop_conditions(conditions_BNW: Tensor, null_NW: Tensor, share: float) -> Tensor:
    """Replace each condition by the null condition with probability ``share``."""
    dropped = torch.rand(len(conditions_BNW), 1, 1, device=conditions_BNW.device) < share
    return torch.where(dropped, null_NW.to(conditions_BNW.dtype), conditions_BNW)


class DiffusionLoss(nn.Module):
    """Mean squared error on the predicted noise, with offset noise.

    ``timesteps_of`` turns uniform numbers ``[B]`` in [0, 1) into timesteps.
    """

    def __init__(self, strength: float, timesteps_of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.strength = strength
        self.timesteps_of = timesteps_of
        # Not a buffer, because a half-precision engine would round it.
        self.alphas_cumprod: Tensor = make_scheduler().alphas_cumprod

    def forward(self, unet: UNet2DConditionModel, latents_BCHW: Tensor, conditions_BNW: Tensor) -> Tensor:
        """The loss of one batch; noise and timesteps come from torch's global generator."""
        timesteps = self.timesteps_of(torch.rand(len(latents_BCHW), device=latents_BCHW.device))
        noise = offset_noise(latents_BCHW.float(), self.strength)
        alpha = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents_BCHW.float() + (1 - alpha).sqrt() * noise
        predicted = unet(noisy.to(conditions_BNW.dtype), timesteps, conditions_BNW).sample
        return nn.functional.mse_loss(predicted.float(), noise)
