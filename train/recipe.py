"""Recipes: every number that a training run depends on, read from one TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from train.errors import TrainError

Positive = Annotated[int, msgspec.Meta(ge=1)]
RECIPES = Path(__file__).parent / "recipes"
DEMO = RECIPES / "demo.toml"
PAPER = RECIPES / "paper.toml"


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One optimisation: AdamW, linear warm-up, cosine decay."""

    steps: Positive
    micro_batch: Positive
    peak_learning_rate: Annotated[float, msgspec.Meta(gt=0)]
    warmup_steps: Positive
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    accumulation: Positive = 1


class DemoBase(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="demo"
):
    """A latent diffusion model of demo size, trained by ``python -m train base``."""

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


class VersatileDiffusion(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="versatile-diffusion",
):
    """The paper's base model: ``image_unet`` and ``vae`` of Versatile Diffusion (Xu et al. 2023)."""

    source: str = "shi-labs/versatile-diffusion"
    """A name on the hub, or a local folder with the folders ``image_unet`` and ``vae``."""
    n_tokens: Positive = 257
    token_width: Positive = 768


class Brain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes and switches of the brain module that do not follow from subject, window or base model."""

    hidden_width: Positive
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    timestep_layers: Literal["own", "shared"] = "own"
    aggregation: Literal["out", "in", "mean"] = "out"
    per_subject_timesteps: bool = False
    residual_blocks: Annotated[int, msgspec.Meta(ge=0)] = 0


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The volumes a decode uses, counted from the image's onset row."""

    offset_volumes: int
    length_volumes: Positive


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Drift removal and z-scoring, and which of its two forms the decoder is trained on."""

    drift: Literal["cosine", "linear"] = "cosine"
    """What is removed from whole runs: the paper's cosines, or as in the released code a line."""
    high_pass_hz: Annotated[float, msgspec.Meta(gt=0)]
    warmup_volumes: Positive
    prior_volumes: Annotated[float, msgspec.Meta(ge=0)]
    train_on: Annotated[tuple[Literal["whole_run", "causal"], ...], msgspec.Meta(min_length=1)]


class Finetune(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of the UNet learns with the brain module (paper, table 3).

    ``lora``: low-rank adapters on every cross-attention projection (the paper's choice); ``none``: nothing;
    ``cross-attention``: its projections themselves; ``linear``: every linear layer; ``all``: everything.
    """

    layers: Literal["lora", "none", "cross-attention", "linear", "all"] = "lora"
    rank: Positive = 4
    alpha: Positive = 4


class Diffusion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training noise and inference settings (paper 2.2)."""

    offset_noise: Annotated[float, msgspec.Meta(ge=0)]
    condition_dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    null_condition: Literal["learned", "zeros"] = "learned"
    """What stands for a dropped condition: the paper's learned embedding, or the released code's zeros."""
    guidance: Annotated[float, msgspec.Meta(ge=1)]
    inference_steps: Positive


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole recipe file."""

    base: DemoBase | VersatileDiffusion
    brain: Brain
    window: Window
    preprocessing: Preprocessing
    finetune: Finetune
    diffusion: Diffusion
    fit: Training


def demo_base(recipe: Recipe) -> DemoBase:
    """The base model of a recipe that trains one.

    :raises TrainError: when it comes pretrained.
    """
    if not isinstance(recipe.base, DemoBase):
        raise TrainError(
            "expected a recipe whose base model is trained here, but this one's comes pretrained from "
            f"{recipe.base.source}; go on with `python -m train fit`"
        )
    return recipe.base


def read_recipe(path: Path = DEMO) -> Recipe:
    """Read a recipe file, or a shipped recipe by its name (``demo``, ``paper``).

    :raises TrainError: naming the file and the field that is missing, unknown or out of range.
    """
    shipped = RECIPES / f"{path}.toml"
    if path.parent == Path() and shipped.exists() and not path.exists():
        path = shipped
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except FileNotFoundError as error:
        names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise TrainError(
            f"expected a recipe at {path}, found no file; shipped recipes go by name: {names}"
        ) from error
    except msgspec.MsgspecError as error:
        raise TrainError(f"recipe {path}: {error}") from error
