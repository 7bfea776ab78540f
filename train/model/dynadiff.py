"""Dynadiff's single stage: brain module and UNet are trained jointly on one diffusion loss (paper 2.2)."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from train.model.batch import Batch
from train.model.brain import BrainConfig, BrainModule
from train.model.diffusion import (
    DiffusionLoss,
    cubic_shares,
    cubic_timesteps,
    drop_conditions,
    inverse_snr_weights,
)
from train.model.vae import draw_latents
from train.recipe import Diffusion, Recipe


class Dynadiff(nn.Module):
    """The objective: the brain module and the trained part of the UNet; everything else is frozen."""

    def __init__(
        self, brain: BrainModule, unet: UNet2DConditionModel, null_NW: Tensor, recipe: Recipe
    ) -> None:
        super().__init__()
        self.brain = brain
        self.unet = unet
        self.null = nn.Parameter(null_NW.clone(), requires_grad=recipe.diffusion.null_condition == "learned")
        self.loss = DiffusionLoss(
            recipe.diffusion.offset_noise, cubic_timesteps, loss_weights(recipe.diffusion)
        )
        self.settings = recipe.diffusion
        self.draws_latents = recipe.latents.posterior == "sample"
        rate = recipe.finetune.peak_learning_rate
        self.learning_rates = {} if rate is None else {"unet.": rate}

    def forward(self, batch: Batch) -> Tensor:
        """The loss of windows ``[B, V, T]``, subject indices ``[B]`` and latents ``[B, c, h, w]``.

        Where the recipe takes samples of the VAE's posterior, the latents are its means and SDs, of ``2 c``
        channels, and each draw of a window has a sample of its own.
        """
        windows = batch["windows"].to(self.null.dtype)
        tokens = self.brain(windows, batch["subjects"])
        n_draws = self.settings.draws_per_window
        drawn = tokens.repeat_interleave(n_draws, dim=0)
        latents = batch["latents"].repeat_interleave(n_draws, dim=0)
        if self.draws_latents:
            latents = draw_latents(latents)
        loss: Tensor = self.loss(
            self.unet, latents, drop_conditions(drawn, self.null, self.settings.condition_dropout)
        )
        return loss

    def steady_loss(self, batch: Batch, seed: int) -> Tensor:
        """The loss of a batch with the same noise and timesteps at every call, and no condition dropped.

        Timesteps are spread evenly over their distribution, so that a few hundred windows say how well a
        decoder does. To be called in evaluation mode. Of latents that are means and SDs, it takes the means.
        """
        torch.manual_seed(seed)
        evenly = DiffusionLoss(self.loss.strength, _evenly, self.loss.weights)
        tokens = self.brain(batch["windows"].to(self.null.dtype), batch["subjects"])
        latents = batch["latents"].chunk(2, dim=1)[0] if self.draws_latents else batch["latents"]
        loss: Tensor = evenly(self.unet, latents, tokens)
        return loss


def _evenly(uniform_B: Tensor) -> Tensor:
    """Timesteps at even places of their distribution, in an order drawn by ``uniform_B``."""
    places = uniform_B.argsort().argsort()
    return cubic_timesteps((places + 0.5) / len(uniform_B))


def loss_weights(settings: Diffusion) -> Tensor | None:
    """The recipe's loss weight of every timestep, ``[1000]``; None for all alike."""
    if settings.loss_weight == "uniform":
        return None
    return inverse_snr_weights(cubic_shares(), settings.loss_weight_cap)


def brain_config(recipe: Recipe, n_voxels: int, n_subjects: int = 1) -> BrainConfig:
    """Settings of the brain module for an ROI of ``n_voxels`` and the recipe's base model."""
    return BrainConfig(
        n_voxels=n_voxels,
        n_subjects=n_subjects,
        n_volumes=recipe.window.length_volumes,
        hidden_width=recipe.brain.hidden_width,
        n_tokens=recipe.base.n_tokens,
        token_width=recipe.base.token_width,
        dropout=recipe.brain.dropout,
        timestep_layers=recipe.brain.timestep_layers,
        aggregation=recipe.brain.aggregation,
        per_subject_timesteps=recipe.brain.per_subject_timesteps,
        residual_blocks=recipe.brain.residual_blocks,
        residual_place=recipe.brain.residual_place,
        residual_dropout=recipe.brain.residual_dropout,
    )
