"""Reads the inputs of an export: the checkpoint, its base model, and the subject's ROI and prior."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from export.errors import ExportError
from realtime.bundle import files
from realtime.bundle import spec as bundle_spec
from realtime.bundle.spec import NULL_CONDITION_FILE, PRIOR_FILE
from realtime.bundle.statistics import VoxelStatistics
from realtime.errors import BundleError
from train.checkpoints.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint, read_info
from train.errors import TrainError

ROI_FILE = "roi.nii.gz"
ADAPTER_FILE = "adapter/pytorch_lora_weights.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The subject's ROI on the scanner's grid, and the prior mean and SD of its voxels."""

    roi: bundle_spec.Roi
    prior: VoxelStatistics


def read_info_of(folder: Path) -> CheckpointInfo:
    """Read a checkpoint's ``checkpoint.json``; raises as :func:`read_checkpoint`."""
    try:
        return read_info(folder)
    except TrainError as error:
        raise ExportError(str(error)) from error


def read_checkpoint(folder: Path, base: Path | None = None, subject: int | None = None) -> Checkpoint:
    """Load a checkpoint and the base model that it was trained on.

    :raises ExportError: a file is missing or damaged, or the files do not fit each other
    """
    try:
        info = read_info(folder)
        if info.recipe.finetune.layers == "lora" and not (folder / ADAPTER_FILE).exists():
            raise ExportError(
                f"expected {folder / ADAPTER_FILE}, found no file; the checkpoint is incomplete"
            )
        if "betas" in info.recipe.preprocessing.train_on:
            raise ExportError(
                f"expected a decoder of volumes, but {folder} decodes betas, which are estimated when a "
                "session is over; train a decoder on windows to serve it"
            )
        return load_checkpoint(folder, base, subject)
    except TrainError as error:
        raise ExportError(str(error)) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ExportError(
            f"expected weights that fit each other in {folder} and its base model: {error}; give the base "
            "model that the checkpoint was trained on with --base, or train again"
        ) from error


def read_evaluation(path: Path | None) -> str | None:
    """Read the table that `python -m train evaluate` wrote, for the model card.

    :raises ExportError: ``path`` is not a text file
    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"expected the table.md of `python -m train evaluate` at {path}: {error}; evaluate first, or "
            "leave --evaluation out"
        ) from error


def read_subject(checkpoint: Checkpoint) -> Subject:
    """Read the subject's ROI and prior, which must fit the brain module.

    :raises ExportError: a file is missing or does not fit
    """
    folder, n_voxels = checkpoint.subject_folder, checkpoint.subject.n_voxels
    path = folder / ROI_FILE
    try:
        mask, affine = files.read_mask(path)
        prior = VoxelStatistics.read(folder / PRIOR_FILE, n_voxels)
    except (BundleError, OSError) as error:
        raise ExportError(f"{error}; `python -m train fit` writes this file at its end") from error
    found = int(np.count_nonzero(mask))
    if found != n_voxels:
        raise ExportError(
            f"{path}: expected the {n_voxels} voxels the brain module was trained on, found {found}; "
            "put the file of the training back, or train again"
        )
    x, y, z = mask.shape
    r0, r1, r2, r3 = ((float(a), float(b), float(c), float(d)) for a, b, c, d in affine)
    roi = bundle_spec.Roi(file=ROI_FILE, n_voxels=n_voxels, shape=(x, y, z), affine=(r0, r1, r2, r3))
    return Subject(roi=roi, prior=prior)


def write_subject(checkpoint: Checkpoint, subject: Subject, folder: Path) -> None:
    """Write the ROI, the prior and the null condition, which the runtime needs besides the graphs."""
    shutil.copyfile(checkpoint.subject_folder / ROI_FILE, folder / ROI_FILE)
    (folder / PRIOR_FILE).write_bytes(subject.prior.as_npz())
    np.save(folder / NULL_CONDITION_FILE, np.ascontiguousarray(checkpoint.null_NW.numpy(), dtype=np.float32))


def latent_shape(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """Channels, height and width of the latents."""
    config = checkpoint.unet.config
    return config.in_channels, config.sample_size, config.sample_size
