"""The baseline's brain module: two low-rank linear maps from a window (Ozcelik & VanRullen 2023).

Legend: B batch, V voxels, T volumes of the window, N tokens, W token width, c, h, w latents, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """Sizes of the two maps."""

    n_voxels: int
    n_volumes: int
    condition_shape: tuple[int, int]
    """N, W"""
    latent_shape: tuple[int, int, int]
    """c, h, w"""
    condition_rank: int
    latent_rank: int


class LowRank(nn.Module):
    """``x @ first @ second + bias``; the R numbers between have unit variance, to fit half precision."""

    def __init__(self, width: int, rank: int, n_outputs: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(width, rank), requires_grad=False)
        self.second = nn.Parameter(torch.zeros(rank, n_outputs), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(n_outputs), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """``[B, width]`` to ``[B, outputs]``."""
        return inputs @ self.first @ self.second + self.bias


class LinearBrain(nn.Module):
    """Predicts the condition tokens and the latents of the seen picture, for one subject."""

    def __init__(self, config: LinearConfig) -> None:
        super().__init__()
        self.config = config
        width = config.n_voxels * config.n_volumes
        self.condition = LowRank(width, config.condition_rank, math.prod(config.condition_shape))
        self.latents = LowRank(width, config.latent_rank, math.prod(config.latent_shape))

    def forward(self, windows_BVT: Tensor, subjects_B: Tensor | None = None) -> Tensor:
        """Windows to conditions ``[B, N, W]``; ``subjects_B`` only matches ``BrainModule``'s interface."""
        tokens: Tensor = self.condition(flattened(windows_BVT))
        return tokens.view(-1, *self.config.condition_shape)

    def start(self, windows_BVT: Tensor) -> Tensor:
        """Windows to the latents that the diffusion starts from, ``[B, c, h, w]``."""
        latents: Tensor = self.latents(flattened(windows_BVT))
        return latents.view(-1, *self.config.latent_shape)


def flattened(windows_BVT: Tensor) -> Tensor:
    """Windows as rows ``[B, T V]``, volume after volume, as on disk."""
    return windows_BVT.transpose(1, 2).flatten(1)
