"""The brain module: maps a window of volumes to condition tokens of the diffusion model (paper 2.2).

Legend: B batch, S subjects, V voxels, T volumes of the window, H hidden width, N tokens, W token width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from train.errors import TrainError

Aggregation = Literal["out", "in", "mean"]
ResidualPlace = Literal["after aggregation", "before aggregation"]
_Layer = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class BrainConfig:
    """Settings of the brain module; defaults are the paper's, V and T depend on the data."""

    n_voxels: int
    n_volumes: int = 6
    n_subjects: int = 1
    hidden_width: int = 1552
    n_tokens: int = 257
    token_width: int = 768
    dropout: float = 0.5
    timestep_layers: Literal["own", "shared"] = "own"
    """Whether every volume has its own layer or all share one (paper, table 2, first row)."""
    aggregation: Aggregation = "out"
    """How volumes are merged: ``out``, by learned weights after the timestep layers; ``in``, by learned
    weights before the subject layer (table 2, second row); ``mean``, by their mean after the timestep
    layers."""
    per_subject_timesteps: bool = False
    """Whether each subject has its own timestep layers (paper, appendix E); the released code shares them."""
    residual_blocks: int = 0
    residual_place: ResidualPlace = "after aggregation"
    """Where the residual blocks are: on the merged volumes, or on each volume before they are merged, as in
    the released code. The paper does not say. With ``aggregation = "in"`` the two are the same."""
    residual_dropout: float | None = None
    """Dropout in the residual blocks (the released code: 0.15); None for ``dropout``."""

    @property
    def n_merged(self) -> int:
        """Number of volumes that enter the subject layer."""
        return 1 if self.aggregation == "in" else self.n_volumes


class SubjectLayer(nn.Module):
    """One matrix per subject for all volumes of the window, without bias, initialised N(0, 1) / sqrt(V)."""

    def __init__(self, n_subjects: int, n_voxels: int, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(n_subjects, n_voxels, width) / n_voxels**0.5)

    def forward(self, window_BTV: Tensor, subject_B: Tensor) -> Tensor:
        """``[B, T, V]`` and subject indices ``[B]`` to ``[B, T, H]``."""
        return _by_subject(window_BTV, subject_B, len(self.weights), lambda x, s: x @ self.weights[s])


class TimestepLayer(nn.Module):
    """A linear layer for every volume of the window, shared by all subjects or one set per subject."""

    def __init__(self, n_subjects: int, n_volumes: int, width: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(n_subjects, n_volumes, width, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_subjects, n_volumes, width).uniform_(-bound, bound))

    def forward(self, hidden_BTH: Tensor, subject_B: Tensor) -> Tensor:
        """``[B, T, H]`` to ``[B, T, H]``; a single layer is applied to every volume."""

        def layer(hidden_BTH: Tensor, subject: int) -> Tensor:
            weight_THK = self.weight[subject].expand(hidden_BTH.shape[1], -1, -1)
            return torch.einsum("bth,thk->btk", hidden_BTH, weight_THK) + self.bias[subject]

        return _by_subject(hidden_BTH, subject_B, len(self.weight), layer)


class ResidualBlock(nn.Module):
    """Linear layer, norm, GELU and dropout, added to the input."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout)
        )

    def forward(self, hidden_xH: Tensor) -> Tensor:
        """``[B, H]`` or ``[B, T, H]`` to the same."""
        added: Tensor = self.body(hidden_xH)
        return hidden_xH + added


class BrainModule(nn.Module):
    """Subject layer, timestep layers, norm, GELU, dropout, aggregation over time, output tokens.

    Residual blocks, of which the paper's model has none, come before or after the aggregation.

    A window of one volume (betas) has no timestep layers and no aggregation: the norm follows the subject
    layer (paper, appendix C).

    :raises TrainError: settings contradict each other
    """

    def __init__(self, config: BrainConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        width = config.hidden_width
        self.subject = SubjectLayer(config.n_subjects, config.n_voxels, width)
        self.timestep: TimestepLayer | None = None
        if config.n_volumes > 1:
            n_layers = config.n_merged if config.timestep_layers == "own" else 1
            n_owners = config.n_subjects if config.per_subject_timesteps else 1
            self.timestep = TimestepLayer(n_owners, n_layers, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        learns_to_merge = config.n_volumes > 1 and config.aggregation != "mean"
        self.aggregate = nn.Linear(config.n_volumes, 1) if learns_to_merge else None
        dropped = config.dropout if config.residual_dropout is None else config.residual_dropout
        self.residual = nn.Sequential(*(ResidualBlock(width, dropped) for _ in range(config.residual_blocks)))
        self.output = nn.Linear(width, config.n_tokens * config.token_width)

    def forward(self, window_BVT: Tensor, subject_B: Tensor) -> Tensor:
        """Windows ``[B, V, T]`` of z-scores, subject indices ``[B]``: condition ``[B, N, W]``."""
        if self.config.aggregation == "in":
            window_BVT = self._merge(window_BVT)[..., None]
        hidden_BTH = self.subject(window_BVT.transpose(1, 2), subject_B)
        if self.timestep is not None:
            hidden_BTH = self.timestep(hidden_BTH, subject_B)
        hidden_BTH = self.dropout(nn.functional.gelu(self.norm(hidden_BTH)))
        residual_first = self.config.residual_place == "before aggregation"
        if residual_first:
            hidden_BTH = self.residual(hidden_BTH)
        if self.config.aggregation == "in":
            hidden_BH = hidden_BTH[:, 0]
        else:
            hidden_BH = self._merge(hidden_BTH.transpose(1, 2))
        tokens: Tensor = self.output(hidden_BH if residual_first else self.residual(hidden_BH))
        return tokens.view(-1, self.config.n_tokens, self.config.token_width)

    def _merge(self, series_BxT: Tensor) -> Tensor:
        """Merge the last axis, time: ``[B, x, T]`` to ``[B, x]``."""
        if self.aggregate is None:
            return series_BxT.mean(dim=-1)
        merged: Tensor = self.aggregate(series_BxT).squeeze(-1)
        return merged

    @torch.no_grad()
    def of_subject(self, subject: int, n_voxels: int) -> BrainModule:
        """A module for one subject, without the padding after its ``n_voxels``.

        :raises TrainError: there is no such subject, or the layers have fewer voxels
        """
        if not (0 <= subject < self.config.n_subjects and 0 < n_voxels <= self.config.n_voxels):
            raise TrainError(
                f"expected a subject index below {self.config.n_subjects} and at most "
                f"{self.config.n_voxels} voxels, got {subject} and {n_voxels}"
            )
        single = BrainModule(replace(self.config, n_subjects=1, n_voxels=n_voxels))
        state = self.state_dict()
        state["subject.weights"] = state["subject.weights"][subject : subject + 1, :n_voxels]
        if self.config.per_subject_timesteps:
            for key in ("timestep.weight", "timestep.bias"):
                state[key] = state[key][subject : subject + 1]
        single.load_state_dict(state)
        return single.train(self.training)


def _check(config: BrainConfig) -> None:
    if config.n_volumes == 1 and config.per_subject_timesteps:
        raise TrainError(
            "a window of one volume has no timestep layers, so subjects cannot have their own; set "
            "per_subject_timesteps = false"
        )


def _by_subject(x_BTX: Tensor, subject_B: Tensor, n_subjects: int, layer: _Layer) -> Tensor:
    """Apply each subject's layer to the rows of this subject; a single layer is applied to all rows at once.

    Gathering one matrix per row instead would copy it for every row of the batch: 2 GB at the paper's size.
    """
    if n_subjects == 1:
        return layer(x_BTX, 0)
    parts, places = [], []
    for subject in sorted(set(subject_B.tolist())):
        rows = (subject_B == subject).nonzero()[:, 0]
        parts.append(layer(x_BTX[rows], subject))
        places.append(rows)
    return torch.cat(parts)[torch.cat(places).argsort()]
