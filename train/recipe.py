"""Recipes: the numbers by which training runs differ, read from one TOML file.

What is the same in all of them is elsewhere: AdamW's betas, epsilon and weight decay, gradient clipping, the
schedule's shape and ZeRO's stage in ``deepspeed.json``; the noise schedule and the distribution of timesteps
in :mod:`train.model.diffusion`; the weights of the base model's own losses in :mod:`train.fitting.pretrain`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from realtime.bundle import spec as bundle_spec
from train.errors import TrainError

Positive = Annotated[int, msgspec.Meta(ge=1)]
Form = Literal["whole_run", "causal", "betas"]
"""What a decoder sees of a presentation: a window of a run that was detrended and z-scored as a whole, the
same window as the runtime makes it while the run goes on, or one beta of a general linear model."""

RECIPES = Path(__file__).parent / "recipes"
DEMO = RECIPES / "demo.toml"
PAPER = RECIPES / "paper.toml"


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One optimisation: AdamW, linear warm-up, cosine decay, as ``deepspeed.json`` says further."""

    steps: Positive
    batch: Positive
    """Examples of one optimizer step, over all devices."""
    micro_batch: Positive
    """Examples that one device takes at once; the rest of its share of the batch is accumulated."""
    peak_learning_rate: Annotated[float, msgspec.Meta(gt=0)]
    warmup_steps: Positive
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"

    def accumulation(self, n_devices: int) -> int:
        """Micro-batches that each of ``n_devices`` takes in one step.

        A micro-batch is never made smaller to fit: noise and dropout go with it, and the losses would change.

        :raises TrainError: when the batch does not divide, saying what does.
        """
        if self.batch % (self.micro_batch * n_devices) == 0:
            return self.batch // (self.micro_batch * n_devices)
        share = self.batch // n_devices
        if self.batch % n_devices == 0:
            fits = max(size for size in range(1, min(self.micro_batch, share) + 1) if share % size == 0)
            advice = f"micro_batch = {fits} does"
        else:
            whole = self.micro_batch * n_devices
            advice = f"batch = {max(1, round(self.batch / whole)) * whole} does"
        raise TrainError(
            f"expected a batch of {self.batch} to divide into micro-batches of {self.micro_batch} on each of "
            f"{n_devices} device(s), which it does not; {advice}"
        )


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


class Preprocessing(bundle_spec.Preprocessing, frozen=True, kw_only=True):
    """The runtime's settings for detrending and z-scoring, and how the training windows are made."""

    drift: Literal["cosine", "linear"] = "cosine"
    """What is removed from whole runs: cosines, as in the paper, or a line, as in the released code."""
    train_on: Annotated[tuple[Form, ...], msgspec.Meta(min_length=1)]
    """The forms of each presentation that the decoder is trained on."""


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


class Ridge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The baseline Brain-Diffuser (Ozcelik and VanRullen 2023), as the paper adapts it."""

    strengths: Annotated[tuple[Annotated[float, msgspec.Meta(gt=0)], ...], msgspec.Meta(min_length=1)] = (
        *(0.1, 0.3, 1.0, 3.0, 10.0),
    )
    """To choose from, in units of a window's mean squared norm; Brain-Diffuser's own is 3.8 in these."""
    held_out: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.1
    """Share of the training pictures whose trials choose the strength."""
    components: Positive = 1000
    """Of tokens and of latents, at most: what a linear map of more of them could add is noise."""
    diffusion_strength: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.75
    """Share of the steps that are run, from the predicted latents with as much noise on them."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole recipe file."""

    split: Literal["time-resolved", "standard"]
    """What is held out: whole runs, or the images that every subject saw (paper 2.3)."""
    base: DemoBase | VersatileDiffusion
    brain: Brain
    window: bundle_spec.Window
    preprocessing: Preprocessing
    finetune: Finetune
    diffusion: Diffusion
    fit: Training
    ridge: Ridge = Ridge()

    def __post_init__(self) -> None:
        if "betas" in self.preprocessing.train_on:
            if self.preprocessing.train_on != ("betas",) or self.window.length_volumes != 1:
                raise ValueError(
                    "betas have no time: expected train_on = ['betas'] alone, length_volumes = 1"
                )


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
