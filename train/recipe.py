"""Recipes: the settings in which trainings differ, read from one TOML file.

Settings that all trainings share are elsewhere: AdamW's betas, epsilon and weight decay, gradient clipping,
the schedule's shape and ZeRO's stage in ``deepspeed.json``; the noise schedule and the distribution of
timesteps in :mod:`train.model.diffusion`; the losses of the base model in :mod:`train.model.vae` and
:mod:`train.model.picture_encoder`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from nsd import TR_S
from realtime.bundle import spec as bundle_spec
from train.errors import TrainError

Positive = Annotated[int, msgspec.Meta(ge=1)]
Form = Literal["whole_run", "causal", "betas"]
"""How a presentation is given to a decoder: as a window of a run that was detrended and z-scored as a whole,
as the same window preprocessed causally as in the runtime, or as one beta of a general linear model."""

SamplerName = Literal["ddim", "ddpm"]

RECIPES = Path(__file__).parent / "recipes"
DEMO = RECIPES / "demo.toml"
PAPER = RECIPES / "paper.toml"


class Plateau(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training's end where the loss on held-out presentations falls no more (:mod:`train.loop.plateau`)."""

    every_steps: Positive
    """Steps between two measurements."""
    measurements: Positive
    """How many last measurements are looked at."""
    fall: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    """The plateau is reached when in these the loss fell by less than this share of its whole fall."""
    presentations: Positive = 256
    """Held-out presentations to measure on, shared among the subjects; no decoder is tested on them
    (:mod:`train.data.validation`)."""


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training with AdamW and linear warm-up; ``deepspeed.json`` has the other settings.

    After the warm-up the learning rate falls as a cosine until the last step, or, where a training ends at a
    ``plateau``, remains as it is.
    """

    steps: Positive
    """Number of steps; the largest one where a training ends at a plateau."""
    batch: Positive
    """Examples in one optimizer step, over all devices."""
    micro_batch: Positive
    """Examples that one device processes at once; gradients are accumulated over the rest of its share."""
    peak_learning_rate: Annotated[float, msgspec.Meta(gt=0)]
    warmup_steps: Positive
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    ema_decay: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    """Decay a step of the weights' moving average (EMA), which is then the result; without it, the result is
    the last weights. See :mod:`train.loop.average`."""
    plateau: Plateau | None = None
    """Only for decoders; without it, a training ends after ``steps``."""

    def __post_init__(self) -> None:
        if self.plateau and not self.ema_decay:
            raise ValueError("a plateau is measured with averaged weights: expected ema_decay beside it")

    def accumulation(self, n_devices: int) -> int:
        """Micro-batches that each of ``n_devices`` processes in one step.

        The micro-batch is never reduced to fit, because noise and dropout depend on it and losses would
        change.

        :raises TrainError: the batch does not divide; the message suggests a size that does
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

    def __post_init__(self) -> None:
        for name in ("vae_training", "encoder_training", "unet_training"):
            if getattr(self, name).plateau:
                raise ValueError(
                    f"expected no plateau in {name}: only decoders are measured on held-out presentations; "
                    "give the number of steps, and the plateau in [fit]"
                )


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
    """Settings of the brain module that do not follow from the subject, the window or the base model."""

    hidden_width: Positive
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    timestep_layers: Literal["own", "shared"] = "own"
    aggregation: Literal["out", "in", "mean"] = "out"
    per_subject_timesteps: bool = False
    residual_blocks: Annotated[int, msgspec.Meta(ge=0)] = 0
    residual_place: Literal["after aggregation", "before aggregation"] = "after aggregation"
    """Whether the residual blocks see the merged volumes, or each volume, as in the released code."""
    residual_dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    """Dropout in the residual blocks, 0.15 in the released code; by default ``dropout``."""


class Preprocessing(bundle_spec.Preprocessing, frozen=True, kw_only=True):
    """The runtime's settings for detrending and z-scoring, and how the training windows are made."""

    drift: Literal["cosine", "linear"] = "cosine"
    """What is removed from whole runs: cosines, as in the paper, or a line, as in the released code."""
    tr_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = TR_S
    """TR of the recorded runs, and so of the scanner that the decoder can be used with; by default NSD's."""
    drift_prior: bool = False
    """Whether the causal fit of the drifts has a prior, measured on the training runs; see
    :mod:`realtime.preprocessing.drift`. False in checkpoints of earlier versions."""
    train_on: Annotated[tuple[Form, ...], msgspec.Meta(min_length=1)]
    """The forms of each presentation that the decoder is trained on."""
    repaired_volumes: Literal["leave out", "use"] = "leave out"
    """What becomes of the volumes that NSD's authors filled in (:mod:`nsd.repairs`): they, and presentations
    whose windows hold them, are left out, or used like others, as in the released code."""


class Finetune(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The part of the UNet that is trained with the brain module (paper, table 3).

    ``lora``: low-rank adapters on every cross-attention projection (the paper's choice); ``none``: nothing;
    ``cross-attention``: the projections themselves; ``linear``: every linear layer; ``all``: everything.
    """

    layers: Literal["lora", "none", "cross-attention", "linear", "all"] = "lora"
    rank: Positive = 4
    alpha: Positive = 4
    initialisation: Literal["gaussian", "kaiming"] = "gaussian"
    """How the adapters' first matrix begins (the second is zero): normal with SD 1 / ``rank``, or uniform
    with SD 1 / sqrt(3 x inputs), as in LoRA's own code and the released code. Under AdamW, the larger it is,
    the faster an adapter changes. The paper does not say."""
    peak_learning_rate: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Peak learning rate of this part of the UNet; by default that of ``[fit]``, as in the paper."""


class Diffusion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training noise, loss and inference settings (paper 2.2).

    The base model's own training has the same noise, and always the uniform loss.
    """

    offset_noise: Annotated[float, msgspec.Meta(ge=0)]
    loss_weight: Literal["uniform", "1/snr"] = "uniform"
    """How the squared errors on the predicted noise are weighted by timestep: all alike (the paper), or by
    the inverse signal-to-noise ratio, which makes them the squared errors on the clean latents; see
    :func:`train.model.diffusion.inverse_snr_weights`."""
    loss_weight_cap: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    """Largest 1/SNR that ``loss_weight = "1/snr"`` takes, before the weights are brought to mean 1. A cap of
    1 / gamma makes it min-SNR-gamma (Hang et al. 2023), whose own gamma is 5: a cap of 0.2."""
    draws_per_window: Positive = 1
    """How often a window is used in a step, each time with its own noise, timestep and condition dropout. Its
    condition is computed once."""
    condition_dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    null_condition: Literal["learned", "zeros"] = "learned"
    """What replaces a dropped condition: a learned embedding (the paper) or zeros (the released code)."""
    guidance: Annotated[float, msgspec.Meta(ge=1)]
    inference_steps: Positive
    sampler: SamplerName = "ddim"
    """How pictures are sampled: DDIM (the paper), or DDPM, whose steps add noise (the released code). A
    bundle's tables have no noise, so the runtime decodes with DDIM and its relatives whatever this says."""


class Latents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the shown pictures become latents, the targets of the diffusion loss."""

    posterior: Literal["mode", "sample"] = "mode"
    """What is taken of the Gaussian that the VAE encodes a picture to: its mode, or a sample, drawn anew for
    each use of a window, as in the released code. The paper does not say. The baseline predicts the mode."""
    resampling: Literal["bicubic", "bilinear"] = "bicubic"
    """How pictures are brought to the base model's size; bilinear in the released code (425 to 512 px)."""


class Ridge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The baseline Brain-Diffuser (Ozcelik and VanRullen 2023), as the paper adapts it."""

    strengths: Annotated[tuple[Annotated[float, msgspec.Meta(gt=0)], ...], msgspec.Meta(min_length=1)] = (
        *(0.1, 0.3, 1.0, 3.0, 10.0),
    )
    """Strengths to choose from, in units of a window's mean squared norm; Brain-Diffuser's own is 3.8."""
    held_out: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.1
    """Share of the training pictures that are held out to choose the strength."""
    components: Positive = 1000
    """Largest number of principal components, of tokens and of latents each; further ones add only noise."""
    diffusion_strength: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.75
    """Share of the diffusion steps that are run, starting from the predicted latents with noise added."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of a recipe file."""

    split: Literal["time-resolved", "standard", "runs-and-shared"]
    """What is held out: whole runs, or the images that every subject saw (paper 2.3). With
    ``runs-and-shared`` runs are held out, and the model is trained on none of these images either."""
    base: DemoBase | VersatileDiffusion
    brain: Brain
    window: bundle_spec.Window
    preprocessing: Preprocessing
    finetune: Finetune
    diffusion: Diffusion
    latents: Latents = Latents()
    fit: Training
    ridge: Ridge = Ridge()

    def __post_init__(self) -> None:
        if "betas" in self.preprocessing.train_on:
            if self.preprocessing.train_on != ("betas",) or self.window.length_volumes != 1:
                raise ValueError(
                    "betas have no time axis: expected train_on = ['betas'] and length_volumes = 1"
                )


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with this package, by name."""
    return {file.stem: file for file in sorted(RECIPES.glob("*.toml"), key=lambda file: file.stem)}


def demo_base(recipe: Recipe) -> DemoBase:
    """The settings of a recipe's base model, if the base model is trained by this project.

    :raises TrainError: the base model is a pretrained one
    """
    if not isinstance(recipe.base, DemoBase):
        raise TrainError(
            "expected a recipe whose base model is trained here, but this recipe uses the pretrained "
            f"{recipe.base.source}; continue with `python -m train fit`"
        )
    return recipe.base


def read_recipe(path: Path = DEMO) -> Recipe:
    """Read a recipe file, or a shipped recipe by its name, such as ``demo``.

    :raises TrainError: the file is missing, or a field is missing, unknown or out of range
    """
    shipped = shipped_recipes()
    if not path.exists():
        path = shipped.get(str(path), path)
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except FileNotFoundError as error:
        raise TrainError(
            f"expected a recipe at {path}, found no file; shipped recipes are: {', '.join(shipped)}"
        ) from error
    except msgspec.MsgspecError as error:
        raise TrainError(f"recipe {path}: {error}") from error
