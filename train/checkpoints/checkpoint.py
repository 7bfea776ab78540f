"""Checkpoints: folders with a trained decoder and a description of it.

checkpoint.json                      method, subjects, held-out runs, seed, recipe, base model, fingerprints
brain.safetensors                    brain module and null condition
adapter/, image_unet/                the tuned part of the UNet (:mod:`train.model.finetune`)
sub-01/roi.nii.gz, sub-01/prior.npz  a subject's ROI and prior, for the runtime
synthetic.json                       settings of the recordings, where they are synthetic
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from realtime.atomic import whole, write_whole
from realtime.bundle.spec import DriftPrior
from train.data.found import Found
from train.errors import TrainError
from train.model.base_model import find_base, is_on_hub, load_vae, shipped_bases
from train.model.brain import BrainModule
from train.model.dynadiff import Dynadiff, brain_config
from train.model.finetune import load_tuned, save_tuned
from train.model.linear_brain import LinearBrain, LinearConfig
from train.recipe import Recipe, SamplerName
from train.store.fingerprints import Method, Terms, base_identity


class TrainedSubject(msgspec.Struct, frozen=True, kw_only=True):
    """A subject that a decoder was trained on."""

    number: int
    n_voxels: int
    held_out_runs: list[tuple[int, int, int]]
    """Subject, session and run of each; empty where images are held out instead of runs."""
    n_train_trials: int
    trained_sessions: list[int] = []
    """Sessions of the presentations that it was trained on; none in files of earlier versions."""
    data: str | None = None
    """Fingerprint of the recordings (:mod:`train.store.fingerprints`)."""
    found: Found | None = None
    """How much of the subject was found on disk; None in files of earlier versions."""
    drift_prior: DriftPrior | None = None
    """How large drifts are in the training runs, where the recipe asks for it."""


class Parent(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint that a training started from."""

    folder: str
    """Path relative to the folder of the checkpoint that started from it."""
    subjects: list[int]
    identity: str


class CheckpointInfo(msgspec.Struct, frozen=True, kw_only=True):
    """``checkpoint.json``. Fields with a default are missing in files of earlier versions."""

    method: Method = "dynadiff"
    """The paper's method, or the baseline (:mod:`train.systems.brain_diffuser.fit`)."""
    subjects: Annotated[list[TrainedSubject], msgspec.Meta(min_length=1)]
    """In the order of their layers in the brain module."""
    seed: int
    tr_s: float
    recipe: Recipe
    base: str
    """Folder of the base model, relative to the checkpoint's folder, or its name: of a shipped one, or on the
    hub."""
    base_identity: str | None = None
    """Fingerprint of the base model that it was trained on."""
    n_sessions: int | None = None
    """Number of first sessions of each subject that it was trained on; None for all."""
    parent: Parent | None = None
    imported_from: str | None = None
    """Name of the released checkpoint it was imported from (:mod:`train.checkpoints.released`), if any."""
    last_loss: float | None
    repetition: int = 0
    """As in :class:`Terms`, like ``extended``."""
    extended: list[tuple[int, int]] = []
    held_out_losses: list[tuple[int, float]] = []
    """Steps, and the loss of the averaged weights on held-out presentations after them, where the recipe has
    a plateau; the weights of the lowest loss are the decoder's."""
    reached_plateau: bool | None = None
    """Whether that loss had ceased to fall when the training ended; None where it was not measured."""

    @property
    def terms(self) -> Terms:
        """Everything that determines the decoder."""
        return Terms(
            method=self.method,
            recipe=self.recipe,
            subjects=[trained.number for trained in self.subjects],
            data=[trained.data for trained in self.subjects],
            sessions=self.n_sessions,
            seed=self.seed,
            base=self.base_identity,
            parent=self.parent.identity if self.parent else None,
            repetition=self.repetition,
            extended=self.extended,
        )


def subject_folder(folder: Path, number: int) -> Path:
    """A subject's folder in a checkpoint."""
    return folder / f"sub-{number:02d}"


def save_checkpoint(folder: Path, model: Dynadiff, info: CheckpointInfo) -> None:
    """Write the weights and, last, ``checkpoint.json``, so that a folder with this file is complete.

    That of a training that was extended is removed first.
    """
    (folder / "checkpoint.json").unlink(missing_ok=True)
    save_tuned(model.unet, info.recipe.finetune, folder)
    write_checkpoint(folder, model.brain, model.null.detach(), info)


def write_checkpoint(folder: Path, brain: nn.Module, null_NW: Tensor, info: CheckpointInfo) -> None:
    """Write a brain module, the null condition and, last, ``checkpoint.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"null_condition": null_NW} | {
        f"brain.{key}": value for key, value in brain.state_dict().items()
    }
    with whole(folder / "brain.safetensors") as partial:
        save_file({key: value.float().contiguous() for key, value in weights.items()}, partial)
    write_whole(folder / "checkpoint.json", msgspec.json.format(msgspec.json.encode(info), indent=2).decode())


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was loaded for one subject, in fp32 and evaluation mode.

    ``unet`` has an adapter that is not merged; ``brain`` has the layers of this subject only.
    """

    folder: Path
    info: CheckpointInfo
    subject: TrainedSubject
    brain: BrainModule | LinearBrain
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    null_NW: Tensor
    base_folder: Path

    @property
    def recipe(self) -> Recipe:
        """The recipe it was trained with."""
        return self.info.recipe

    def on_device(self) -> Checkpoint:
        """The same checkpoint on the GPU, if there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        moved = {part: getattr(self, part).to(device) for part in ("brain", "unet", "vae", "null_NW")}
        return replace(self, **moved)

    def sampled_by(self, sampler: SamplerName) -> Checkpoint:
        """The same checkpoint with another sampler in its recipe."""
        diffusion = msgspec.structs.replace(self.recipe.diffusion, sampler=sampler)
        recipe = msgspec.structs.replace(self.recipe, diffusion=diffusion)
        return replace(self, info=msgspec.structs.replace(self.info, recipe=recipe))

    @property
    def subject_folder(self) -> Path:
        """Folder of the subject's ROI and prior."""
        return subject_folder(self.folder, self.subject.number)


def load_checkpoint(folder: Path, base: str | Path | None = None, subject: int | None = None) -> Checkpoint:
    """Load a checkpoint and the base model that it was trained on.

    :param base: folder of the base model, if it has been moved since
    :param subject: number of the subject; needed when the checkpoint has several
    :raises TrainError: a file is missing, ``checkpoint.json`` cannot be read, or the decoder was not trained
        on this subject or base model
    """
    info = read_info(folder)
    trained = _trained_subject(folder, info, subject)
    base_folder = find_base(base or _base_of(folder, info.base))
    if info.base_identity not in (None, base_identity(base_folder)):
        raise TrainError(
            f"expected the base model that {folder} was trained on, found another one in {base_folder}; give "
            "the folder of the right one with --base, or train again"
        )
    weights, null_NW = read_weights(folder)
    unet, vae = load_tuned(info.recipe.finetune, folder, base_folder), load_vae(base_folder)
    brain = _brain_of(trained, info, weights, unet)
    for part in (brain, unet, vae):
        part.eval().requires_grad_(False)
    return Checkpoint(
        folder=folder,
        info=info,
        subject=trained,
        brain=brain,
        unet=unet,
        vae=vae,
        null_NW=null_NW,
        base_folder=base_folder,
    )


def _base_of(folder: Path, reference: str) -> str | Path:
    """The base model that a checkpoint in ``folder`` names: a folder, seen from there, or a name."""
    beside = folder / reference
    is_name = is_on_hub(reference) or reference in shipped_bases()
    return reference if is_name and not beside.exists() else beside.resolve()


def _brain_of(
    trained: TrainedSubject, info: CheckpointInfo, weights: dict[str, Tensor], unet: UNet2DConditionModel
) -> BrainModule | LinearBrain:
    if info.method == "dynadiff":
        n_voxels = max(each.n_voxels for each in info.subjects)
        several = BrainModule(brain_config(info.recipe, n_voxels, len(info.subjects)))
        several.load_state_dict(weights)
        return several.of_subject(info.subjects.index(trained), trained.n_voxels)
    base, size = info.recipe.base, unet.config.sample_size
    config = LinearConfig(
        n_voxels=trained.n_voxels,
        n_volumes=info.recipe.window.length_volumes,
        condition_shape=(base.n_tokens, base.token_width),
        latent_shape=(unet.config.in_channels, size, size),
        condition_rank=len(weights["condition.second"]),
        latent_rank=len(weights["latents.second"]),
    )
    linear = LinearBrain(config)
    linear.load_state_dict(weights)
    return linear


def _trained_subject(folder: Path, info: CheckpointInfo, number: int | None) -> TrainedSubject:
    if number is None and len(info.subjects) == 1:
        return info.subjects[0]
    for trained in info.subjects:
        if trained.number == number:
            return trained
    known = ", ".join(str(trained.number) for trained in info.subjects)
    given = "none" if number is None else str(number)
    raise TrainError(
        f"expected one of the subjects that {folder} was trained on ({known}), got {given}; choose one with "
        "--subject"
    )


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Read the brain module's weights by name, and the null condition ``[N, W]``.

    :raises TrainError: the file is missing
    """
    path = folder / "brain.safetensors"
    if not path.exists():
        raise TrainError(f"expected {path}, found no file; give the folder of a complete checkpoint")
    weights = load_file(path)
    brain = {k.removeprefix("brain."): v for k, v in weights.items() if k.startswith("brain.")}
    # A copy, because any tensor of the file keeps the whole file mapped.
    return brain, weights["null_condition"].clone()


def read_info(folder: Path) -> CheckpointInfo:
    """Read ``checkpoint.json``; raises as :func:`load_checkpoint`."""
    path = folder / "checkpoint.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=CheckpointInfo)
    except FileNotFoundError as error:
        raise TrainError(
            f"expected {path}, found no file; give a folder in which `python -m train fit` has finished"
        ) from error
    except msgspec.MsgspecError as error:
        raise TrainError(
            f"{path}: expected what `python -m train fit` writes: {error}; use the version that wrote it, or "
            "train again"
        ) from error
