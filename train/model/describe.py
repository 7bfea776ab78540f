"""Counts the parameters of a recipe's model by part, without allocating weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nsd import NSDGENERAL_VOXELS, Layout, read_roi
from train.errors import TrainError
from train.model.base_model import make_unet, make_vae
from train.model.brain import BrainModule
from train.model.dynadiff import brain_config
from train.model.finetune import set_trainable
from train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the model; ``trained`` of its ``parameters`` are trained in Dynadiff's stage."""

    name: str
    parameters: int
    trained: int


def region_sizes(subjects: Sequence[int], root: Path | None) -> dict[int, int]:
    """Number of voxels in the region of each subject: in the data set in ``root``, or in NSD.

    :raises TrainError: without ``root``, a subject is not one of NSD's
    :raises NsdError: a region in ``root`` cannot be read
    """
    if root is not None:
        return {subject: read_roi(Layout(root), subject).n_voxels for subject in subjects}
    unknown = [subject for subject in subjects if subject not in NSDGENERAL_VOXELS]
    if unknown:
        raise TrainError(f"expected subjects of NSD, 1 to {len(NSDGENERAL_VOXELS)}, got {list(subjects)}")
    return {subject: NSDGENERAL_VOXELS[subject] for subject in subjects}


def describe(recipe: Recipe, n_voxels: Sequence[int]) -> list[Part]:
    """The parts of a recipe's model for subjects whose regions have ``n_voxels``; adapters are one part.

    Several subjects share all layers except those that the recipe has per subject; their ROIs are padded to
    the largest.
    """
    with torch.device("meta"):
        brain = BrainModule(brain_config(recipe, max(n_voxels), len(n_voxels)))
        unet, vae = make_unet(recipe.base), make_vae(recipe.base)
        set_trainable(unet, recipe.finetune)
    parts = [_part(f"brain.{name}", module) for name, module in brain.named_children()]
    parts = [part for part in parts if part.parameters]
    n_null = recipe.base.n_tokens * recipe.base.token_width
    learns = recipe.diffusion.null_condition == "learned"
    parts.append(Part(name="null condition", parameters=n_null, trained=n_null if learns else 0))
    adapters = sum(p.numel() for name, p in unet.named_parameters() if "lora_" in name)
    whole = _part("image_unet", unet)
    parts.append(
        Part(
            name="image_unet",
            parameters=whole.parameters - adapters,
            trained=whole.trained - adapters,
        )
    )
    if adapters:
        parts.append(Part(name="adapter", parameters=adapters, trained=adapters))
    vae.requires_grad_(False)
    return [*parts, _part("vae", vae)]


def as_text(parts: Sequence[Part]) -> str:
    """A table of the parts in millions of parameters, with sums."""
    total = Part(
        name="all",
        parameters=sum(part.parameters for part in parts),
        trained=sum(part.trained for part in parts),
    )
    brain = [part for part in parts if part.name.startswith("brain.")]
    module = Part(
        name="brain module",
        parameters=sum(part.parameters for part in brain),
        trained=sum(part.trained for part in brain),
    )
    rows = [*brain, module, *(part for part in parts if part not in brain), total]
    lines = [f"{'part':16} {'parameters':>14} {'trained':>14}"]
    lines += [f"{row.name:16} {_millions(row.parameters)} {_millions(row.trained)}" for row in rows]
    return "\n".join(lines)


def _part(name: str, module: nn.Module) -> Part:
    parameters = list(module.parameters())
    return Part(
        name=name,
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:12.3f} M"
