"""Recipes: every number that a training run depends on, read from one TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from train.errors import TrainError

Positive = Annotated[int, msgspec.Meta(ge=1)]
DEMO = Path(__file__).parent / "recipes" / "demo.toml"


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One optimisation: AdamW, linear warm-up, cosine decay."""

    steps: Positive
    micro_batch: Positive
    peak_learning_rate: Annotated[float, msgspec.Meta(gt=0)]
    warmup_steps: Positive
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    accumulation: Positive = 1


class Base(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The pretrained latent diffusion model: VAE, UNet and the tokens it is conditioned on."""

    latent_channels: Positive
    vae_widths: tuple[Positive, ...]
    unet_widths: tuple[Positive, ...]
    attention_head_width: Positive
    n_tokens: Positive
    token_width: Positive
    condition_noise: Annotated[float, msgspec.Meta(ge=0)]
    n_pictures: Positive
    vae_training: Training
    encoder_training: Training
    unet_training: Training


class Brain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the brain module that do not follow from subject, window or base model."""

    hidden_width: Positive
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)]


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The volumes a decode uses, counted from the image's onset row."""

    offset_volumes: int
    length_volumes: Positive


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Drift removal and z-scoring, and which of its two forms the decoder is trained on."""

    high_pass_hz: Annotated[float, msgspec.Meta(gt=0)]
    warmup_volumes: Positive
    prior_volumes: Annotated[float, msgspec.Meta(ge=0)]
    train_on: Annotated[tuple[Literal["whole_run", "causal"], ...], msgspec.Meta(min_length=1)]


class Lora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Low-rank adapters on every cross-attention projection of the UNet."""

    rank: Positive
    alpha: Positive


class Diffusion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training noise and inference settings (paper 2.2)."""

    offset_noise: Annotated[float, msgspec.Meta(ge=0)]
    condition_dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    guidance: Annotated[float, msgspec.Meta(ge=1)]
    inference_steps: Positive


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole recipe file."""

    base: Base
    brain: Brain
    window: Window
    preprocessing: Preprocessing
    lora: Lora
    diffusion: Diffusion
    fit: Training


def read_recipe(path: Path = DEMO) -> Recipe:
    """Read a recipe.

    :raises TrainError: naming the file and the field that is missing, unknown or out of range.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except FileNotFoundError as error:
        raise TrainError(f"expected a recipe at {path}, found no file") from error
    except msgspec.MsgspecError as error:
        raise TrainError(f"recipe {path}: {error}") from error
