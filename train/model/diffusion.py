"""The diffusion loss of the base model's training and of Dynadiff's stage (paper 2.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from train.recipe import SamplerName


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


def make_sampler(name: SamplerName) -> DDIMScheduler | DDPMScheduler:
    """The scheduler that samples: DDIM (Song et al. 2021, eta 0) or DDPM (Ho et al. 2020).

    Both run through the same timesteps. DDPM is DDIM with eta 1 but for the last step, which ends without
    noise: at a' = 1, not at the schedule's first value.
    """
    scheduler = make_scheduler()
    return scheduler if name == "ddim" else DDPMScheduler.from_config(scheduler.config)


def cubic_timesteps(uniform_B: Tensor, n_timesteps: int = 1000) -> Tensor:
    """Timesteps ``(1 - u^3) * n``: more noisy ones, where the condition matters most (paper 2.2)."""
    return ((1 - uniform_B**3) * n_timesteps).long().clamp(max=n_timesteps - 1)


def uniform_timesteps(uniform_B: Tensor, n_timesteps: int = 1000) -> Tensor:
    """Uniform timesteps, as base models are pretrained with; little noise teaches fine detail."""
    return (uniform_B * n_timesteps).long().clamp(max=n_timesteps - 1)


def cubic_shares(n_timesteps: int = 1000) -> Tensor:
    """How often :func:`cubic_timesteps` draws each timestep, ``[n]`` in fp64: u = (1 - t / n)^(1/3)."""
    edges = torch.arange(n_timesteps + 1, dtype=torch.float64) / n_timesteps
    return -((1 - edges) ** (1 / 3)).diff()


def inverse_snr_weights(shares: Tensor, cap: float) -> Tensor:
    """Loss weights of the timesteps, ``[n]``: min(1/SNR, cap), divided by its mean over draws of timesteps.

    SNR is alpha / (1 - alpha), where alpha is the cumulative product of the noise schedule. The clean latents
    are x0 = (x_t - sqrt(1 - alpha) noise) / sqrt(alpha), so an error on the noise is sqrt(1/SNR) times as
    large on x0: mean squared error on x0 is 1/SNR times that on the noise (Salimans and Ho 2022, section 4).
    Without a cap, 1/SNR of the noisiest step is 214. Weights of mean 1 leave the size of loss and gradients,
    and so clipping and loss scale, about as they are. A cap of 1 / gamma gives min-SNR-gamma,
    min(SNR, gamma) / SNR (Hang et al. 2023), but for the factor gamma.

    :param shares: how often each timestep is drawn, ``[n]``, with sum 1
    """
    alpha = make_scheduler().alphas_cumprod.double()
    capped = ((1 - alpha) / alpha).clamp(max=cap)
    weights: Tensor = (capped / (shares * capped).sum()).float()
    return weights


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

    ``timesteps_of`` turns uniform numbers ``[B]`` in [0, 1) into timesteps; ``weights`` has each timestep's
    weight, None for all alike.
    """

    def __init__(
        self, strength: float, timesteps_of: Callable[[Tensor], Tensor], weights: Tensor | None = None
    ) -> None:
        super().__init__()
        self.strength = strength
        self.timesteps_of = timesteps_of
        # Not buffers, because a half-precision engine would round them.
        self.weights = weights
        self.alphas_cumprod: Tensor = make_scheduler().alphas_cumprod

    def forward(self, unet: UNet2DConditionModel, latents_BCHW: Tensor, conditions_BNW: Tensor) -> Tensor:
        """The loss of one batch; noise and timesteps come from torch's global generator."""
        timesteps = self.timesteps_of(torch.rand(len(latents_BCHW), device=latents_BCHW.device))
        noise = offset_noise(latents_BCHW.float(), self.strength)
        alpha = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents_BCHW.float() + (1 - alpha).sqrt() * noise
        predicted = unet(noisy.to(conditions_BNW.dtype), timesteps, conditions_BNW).sample
        if self.weights is None:
            return nn.functional.mse_loss(predicted.float(), noise)
        errors = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        loss: Tensor = (self.weights.to(timesteps.device)[timesteps] * errors).mean()
        return loss
