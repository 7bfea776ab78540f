"""Dynadiff's single stage: brain module and UNet learn jointly from one diffusion loss (paper 2.2).

A checkpoint is a folder that says what it is:

    checkpoint.json        subject, seed, recipe, brain sizes, base model, held-out runs
    brain.safetensors      brain module and null condition
    adapter/               LoRA, or what else of the UNet was tuned (:mod:`train.finetune`)
    roi.nii.gz, prior.npz  what the runtime needs of the subject
    synthetic.json         how the recordings were made, where no person was scanned
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.base import find_base, is_on_hub, load_vae
from train.brain import BrainConfig, BrainModule
from train.diffusion import DiffusionLoss, cubic_timesteps, drop_conditions
from train.errors import TrainError
from train.finetune import load_merged, load_tuned, save_tuned
from train.loop import Batch
from train.recipe import Recipe


class CheckpointInfo(msgspec.Struct, frozen=True, kw_only=True):
    """``checkpoint.json``."""

    subject: int
    seed: int
    tr_s: float
    n_voxels: int
    recipe: Recipe
    base: str
    """Folder of the base model, relative to the checkpoint's, or its name on the hub."""
    held_out_runs: list[tuple[int, int, int]]
    n_train_trials: int
    last_loss: float | None


class Dynadiff(nn.Module):
    """The objective: brain module and a UNet of which some part learns; all else is frozen."""

    def __init__(
        self, brain: BrainModule, unet: UNet2DConditionModel, null_NW: Tensor, recipe: Recipe
    ) -> None:
        super().__init__()
        self.brain = brain
        self.unet = unet
        self.null = nn.Parameter(null_NW.clone(), requires_grad=recipe.diffusion.null_condition == "learned")
        self.loss = DiffusionLoss(recipe.diffusion.offset_noise, cubic_timesteps)
        self.dropout = recipe.diffusion.condition_dropout

    def forward(self, batch: Batch) -> Tensor:
        """Loss of windows ``[B, V, T]``, subject indices ``[B]`` and latents ``[B, c, h, w]``."""
        windows = batch["windows"].to(self.null.dtype)
        tokens = self.brain(windows, batch["subjects"])
        loss: Tensor = self.loss(
            self.unet, batch["latents"], drop_conditions(tokens, self.null, self.dropout)
        )
        return loss


def brain_config(recipe: Recipe, n_voxels: int, n_subjects: int = 1) -> BrainConfig:
    """Sizes of the brain module for a region of ``n_voxels`` and the recipe's base model."""
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


def save_checkpoint(folder: Path, model: Dynadiff, info: CheckpointInfo) -> None:
    """Write the weights and, last, ``checkpoint.json``: a folder that has it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"null_condition": model.null.detach()} | {
        f"brain.{key}": value for key, value in model.brain.state_dict().items()
    }
    save_file(
        {key: value.float().contiguous() for key, value in weights.items()}, folder / "brain.safetensors"
    )
    save_tuned(model.unet, info.recipe.finetune, folder)
    partial = folder / "checkpoint.json.partial"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=2))
    partial.rename(folder / "checkpoint.json")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint read back, in fp32 and evaluation mode; an adapter lies beside ``unet``'s weights."""

    folder: Path
    info: CheckpointInfo
    brain: BrainModule
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    null_NW: Tensor
    base_folder: Path

    @property
    def recipe(self) -> Recipe:
        """The recipe it was trained with."""
        return self.info.recipe


def load_checkpoint(folder: Path, base: str | Path | None = None) -> Checkpoint:
    """Read a checkpoint and the base model it was trained on.

    :raises TrainError: when either lacks a file or ``checkpoint.json`` cannot be read.
    """
    info = read_info(folder)
    base_folder = find_base(base or (info.base if is_on_hub(info.base) else (folder / info.base).resolve()))
    path = folder / "brain.safetensors"
    if not path.exists():
        raise TrainError(f"expected {path}, found no file; is {folder} a whole checkpoint?")
    weights = load_file(path)
    brain = BrainModule(brain_config(info.recipe, info.n_voxels))
    brain.load_state_dict({k.removeprefix("brain."): v for k, v in weights.items() if k.startswith("brain.")})
    unet, vae = load_tuned(info.recipe.finetune, folder, base_folder), load_vae(base_folder)
    for part in (brain, unet, vae):
        part.eval().requires_grad_(False)
    return Checkpoint(
        folder=folder,
        info=info,
        brain=brain,
        unet=unet,
        vae=vae,
        null_NW=weights["null_condition"],
        base_folder=base_folder,
    )


def read_info(folder: Path) -> CheckpointInfo:
    """Read ``checkpoint.json``; raises as :func:`load_checkpoint`."""
    path = folder / "checkpoint.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=CheckpointInfo)
    except FileNotFoundError as error:
        raise TrainError(
            f"expected {path}, found no file; is {folder} what `train fit` wrote, to its end?"
        ) from error
    except msgspec.MsgspecError as error:
        raise TrainError(f"{path}: {error}") from error


def merged_unet(checkpoint: Checkpoint) -> UNet2DConditionModel:
    """A plain UNet with the adapter folded into its weights; the checkpoint's own is left as it is."""
    return load_merged(checkpoint.recipe.finetune, checkpoint.folder, checkpoint.base_folder)
