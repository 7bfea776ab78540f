"""Dynadiff's single stage: brain module and UNet are trained jointly on one diffusion loss (paper 2.2)."""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from train.model.batch import Batch
from train.model.brain import BrainConfig, BrainModule
from train.model.diffusion import DiffusionLoss, cubic_timesteps, drop_conditions
from train.recipe import Recipe


class Dynadiff(nn.Module):
    """The objective: the brain module and the trained part of the UNet; everything else is frozen."""

    def __init__(
        self, brain: BrainModule, unet: UNet2DConditionModel, null_NW: Tensor, recipe: Recipe
    ) -> None:
        super().__init__()
        self.brain = brain
        self.unet = unet
        self.null = nn.Parameter(null_NW.clone(), requires_grad=recipe.diffusion.null_condition == "learned")
        self.loss = DiffusionLoss(recipe.diffusion.offset_noise, cubic_timesteps)
        self.settings = recipe.diffusion

    def forward(self, batch: Batch) -> Tensor:
        """The loss of windows ``[B, V, T]``, subject indices ``[B]`` and latents ``[B, c, h, w]``."""
        windows = batch["windows"].to(self.null.dtype)
        tokens = self.brain(windows, batch["subjects"])
        loss: Tensor = self.loss(
            self.unet, batch["latents"], drop_conditions(tokens, self.null, self.settings.condition_dropout)
        )
        return loss


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
    )
