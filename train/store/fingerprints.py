"""Fingerprints: 16 hexadecimal digits that change when recordings, pictures, a model or settings change.

They are stored with everything that is made from these, so that a replaced input is noticed. Large files are
not read in full: recordings are fingerprinted by their sizes, pictures and weights by their size, first and
last megabyte. Paths and dates have no part, so a moved or copied file keeps its fingerprint. Does not import
torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

import nsd
from nsd import Layout, betas_path, read_roi
from nsd.splits import RunTrial
from train.errors import TrainError
from train.recipe import Recipe

SYNTHETIC_FILE = nsd.SYNTHETIC_FILE
Method = Literal["dynadiff", "brain-diffuser"]
_END_BYTES = 1 << 20
_CHECKPOINT_FILES = ("checkpoint.json", "brain.safetensors", "adapter/*", "image_unet/*")


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that determines a trained decoder: a checkpoint with equal terms need not be trained again.

    Fingerprints are None where a checkpoint does not have them, as in earlier versions.
    """

    method: Method
    recipe: Recipe
    subjects: list[int]
    data: list[str | None]
    """Fingerprint of each subject's recordings."""
    sessions: int | None
    """Number of first sessions that were used; None for all."""
    seed: int
    base: str | None
    """Fingerprint of the base model."""
    parent: str | None
    """Fingerprint of the checkpoint that the training started from."""
    repetition: int = 0
    """Which of several trainings that are alike but for weights, data order and noise."""
    extended: list[tuple[int, int]] = []
    """Where a training with a falling learning rate was given more steps: those that it had taken, and those
    that it was to take until then (:mod:`train.loop.deepspeed_engine`)."""

    def differences(self, theirs: Terms) -> list[str]:
        """Names of the fields that differ; for recipes, names of their sections."""
        names = [name for name in self.__struct_fields__ if name != "recipe"]
        return sorted(_different(self, theirs, names) + recipe_differences(self.recipe, theirs.recipe))


def recipe_differences(ours: Recipe, theirs: Recipe) -> list[str]:
    """Names of the sections that differ between two recipes."""
    return _different(ours, theirs, ours.__struct_fields__)


def digest(content: Any) -> str:
    """Fingerprint of anything that can be written as JSON."""
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:16]


def file_identity(path: Path) -> str:
    """Fingerprint of a file: its size, its first and its last megabyte."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = hashlib.sha256(file.read(_END_BYTES))
        file.seek(max(_END_BYTES, size - _END_BYTES))
        ends.update(file.read(_END_BYTES))
    return digest([size, ends.hexdigest()])


def subject_identity(layout: Layout, trials: Sequence[RunTrial]) -> str:
    """Fingerprint of a subject's recordings: ROI, runs on disk, trials and, for synthetic data, settings.

    :param trials: the trials of the subject's runs
    :raises NsdError: the ROI cannot be read
    """
    keys = sorted({item.run for item in trials})
    subject = keys[0].subject
    roi = read_roi(layout, subject)
    return digest(
        {
            "grid": roi.mask.shape,
            "affine": roi.affine.tolist(),
            "region": hashlib.sha256(np.packbits(roi.mask).tobytes()).hexdigest(),
            "runs": [(key, layout.timeseries(*key).stat().st_size) for key in keys],
            "trials": trials,
            "synthetic": _synthesis(layout.root / SYNTHETIC_FILE, subject),
        }
    )


def betas_identity(layout: Layout, trials: Sequence[RunTrial]) -> str:
    """Fingerprint of the betas of the trials' sessions, as far as they are on disk."""
    sessions = sorted({(item.run.subject, item.run.session) for item in trials})
    paths = [betas_path(layout, *session) for session in sessions]
    return digest([file_identity(path) for path in paths if path.exists()])


def pictures_identity(layout: Layout) -> str:
    """Fingerprint of the stimuli."""
    return file_identity(layout.stimuli())


def vae_identity(base: Path) -> str:
    """Fingerprint of a base model's VAE."""
    return _files_identity(base, _model_files(base / "vae"))


def base_identity(base: Path) -> str:
    """Fingerprint of a base model: its UNet, its VAE and, for the demo's, its picture encoder."""
    files = _model_files(base / "image_unet") + _model_files(base / "vae")
    encoder = base / "picture_encoder.safetensors"
    return _files_identity(base, files + [encoder] * encoder.exists())


def checkpoint_identity(folder: Path) -> str:
    """Fingerprint of a checkpoint: its ``checkpoint.json`` and its weights."""
    return _files_identity(folder, [path for name in _CHECKPOINT_FILES for path in folder.glob(name)])


def _different(ours: object, theirs: object, names: Iterable[str]) -> list[str]:
    return [name for name in names if getattr(ours, name) != getattr(theirs, name)]


def _model_files(part: Path) -> list[Path]:
    """The configuration and the weights that diffusers would read: safetensors where there are both kinds."""
    weights = list(part.glob("*.safetensors")) or list(part.glob("*.bin"))
    return [part / "config.json", *weights]


def _files_identity(root: Path, paths: Iterable[Path]) -> str:
    return digest([(path.relative_to(root).as_posix(), file_identity(path)) for path in sorted(paths)])


def _synthesis(path: Path, subject: int) -> dict[str, Any] | None:
    """The settings of one synthetic subject, from ``synthetic.json``; other subjects have no part in it."""
    if not path.exists():
        return None
    try:
        note = json.loads(path.read_bytes())
        of_subject = note["signal_share_quartiles"].get(str(subject))
        return {"seed": note["seed"], "settings": note["settings_sha256"], "signal": of_subject}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainError(
            f"{path}: expected the file that `python -m sim synthesize` writes, got {error!r}; copy it again"
        ) from error
