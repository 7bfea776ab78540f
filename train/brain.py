"""The brain module: a window of volumes to the condition tokens of the diffusion model (paper 2.2).

Legend: B batch, V voxels, T volumes of the window, H hidden width, N tokens, W token width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class BrainConfig:
    """Sizes of the brain module; the paper's are the defaults, V and T belong to the subject and window."""

    n_voxels: int
    n_volumes: int = 6
    n_subjects: int = 1
    hidden_width: int = 1552
    n_tokens: int = 257
    token_width: int = 768
    dropout: float = 0.5


class SubjectLayer(nn.Module):
    """One matrix per subject, shared over the window's volumes, no bias, initialised N(0, 1) / sqrt(V)."""

    def __init__(self, n_subjects: int, n_voxels: int, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(n_subjects, n_voxels, width) / n_voxels**0.5)

    def forward(self, window_BVT: Tensor, subject_B: Tensor) -> Tensor:
        """``[B, V, T]`` and subject indices ``[B]`` to ``[B, T, H]``."""
        if self.weights.shape[0] == 1:
            return window_BVT.transpose(1, 2) @ self.weights[0]
        return window_BVT.transpose(1, 2) @ self.weights[subject_B]


class TimestepLayer(nn.Module):
    """A linear layer of its own for every volume of the window."""

    def __init__(self, n_volumes: int, width: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(n_volumes, width, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_volumes, width).uniform_(-bound, bound))

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """``[B, T, H]`` to ``[B, T, H]``."""
        return torch.einsum("bth,thk->btk", hidden_BTH, self.weight) + self.bias


class BrainModule(nn.Module):
    """Subject layer, timestep layers, norm, GELU, dropout, aggregation over time, output tokens."""

    def __init__(self, config: BrainConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_width
        self.subject = SubjectLayer(config.n_subjects, config.n_voxels, width)
        self.timestep = TimestepLayer(config.n_volumes, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.aggregate = nn.Linear(config.n_volumes, 1)
        self.output = nn.Linear(width, config.n_tokens * config.token_width)

    def forward(self, window_BVT: Tensor, subject_B: Tensor) -> Tensor:
        """Windows ``[B, V, T]`` of z-scores, subject indices ``[B]``: condition ``[B, N, W]``."""
        hidden_BTH = self.timestep(self.subject(window_BVT, subject_B))
        hidden_BTH = self.dropout(nn.functional.gelu(self.norm(hidden_BTH)))
        hidden_BH = self.aggregate(hidden_BTH.transpose(1, 2)).squeeze(-1)
        tokens: Tensor = self.output(hidden_BH)
        return tokens.view(-1, self.config.n_tokens, self.config.token_width)
