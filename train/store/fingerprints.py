"""What a thing is, in 16 digits to keep beside what is made from it, so that its exchange is noticed.

Identities cost no reading of gigabytes: of recordings, their sizes stand for the files; of pictures and
weights, size and both ends. Neither paths nor dates are part of them, so that what is moved or copied stays
what it was. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from nsd import Layout, read_roi
from nsd.splits import RunTrial
from train.errors import TrainError
from train.recipe import Recipe

SYNTHETIC_FILE = "synthetic.json"
Method = Literal["dynadiff", "brain-diffuser"]
_END_BYTES = 1 << 20
_CHECKPOINT_FILES = ("checkpoint.json", "brain.safetensors", "adapter/*", "image_unet/*")


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decoder follows from: one that is there need not be fitted again on equal terms.

    Identities are none where a checkpoint does not tell, as those of earlier versions.
    """

    method: Method
    recipe: Recipe
    subjects: list[int]
    data: list[str | None]
    """Identity of each subject's recordings."""
    sessions: int | None
    """The first so many of them; none for all."""
    seed: int
    base: str | None
    """Identity of the base model."""
    parent: str | None
    """Identity of the checkpoint that it began with."""

    def differences(self, theirs: Terms) -> list[str]:
        """Names of what differs, of recipes by section."""
        names = [name for name in self.__struct_fields__ if name != "recipe"]
        return sorted(_different(self, theirs, names) + recipe_differences(self.recipe, theirs.recipe))


def recipe_differences(ours: Recipe, theirs: Recipe) -> list[str]:
    """Names of the sections that differ."""
    return _different(ours, theirs, ours.__struct_fields__)


def digest(content: Any) -> str:
    """Identity of anything that can be written as JSON."""
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:16]


def file_identity(path: Path) -> str:
    """Identity of a file, from its size and both ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = hashlib.sha256(file.read(_END_BYTES))
        file.seek(max(_END_BYTES, size - _END_BYTES))
        ends.update(file.read(_END_BYTES))
    return digest([size, ends.hexdigest()])


def subject_identity(layout: Layout, trials: Sequence[RunTrial]) -> str:
    """Identity of a subject's recordings: region, runs on disk, what was shown when; if made, how.

    :param trials: of the subject's runs
    :raises NsdError: when the region cannot be read
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
    """Identity of the betas of the trials' sessions, those that are on disk."""
    sessions = sorted({(item.run.subject, item.run.session) for item in trials})
    paths = [layout.betas(*session) for session in sessions]
    return digest([file_identity(path) for path in paths if path.exists()])


def pictures_identity(layout: Layout) -> str:
    """Identity of the stimuli."""
    return file_identity(layout.stimuli())


def vae_identity(base: Path) -> str:
    """Identity of a base model's VAE."""
    return _files_identity(base, _model_files(base / "vae"))


def base_identity(base: Path) -> str:
    """Identity of a base model: configurations and weights of UNet, VAE and, of the demo's, encoder."""
    files = _model_files(base / "image_unet") + _model_files(base / "vae")
    encoder = base / "picture_encoder.safetensors"
    return _files_identity(base, files + [encoder] * encoder.exists())


def checkpoint_identity(folder: Path) -> str:
    """Identity of a checkpoint: what it says of itself and its weights."""
    return _files_identity(folder, [path for name in _CHECKPOINT_FILES for path in folder.glob(name)])


def _different(ours: object, theirs: object, names: Iterable[str]) -> list[str]:
    return [name for name in names if getattr(ours, name) != getattr(theirs, name)]


def _model_files(part: Path) -> list[Path]:
    """Configuration and the weights that diffusers would read: where there are several kinds, safetensors."""
    weights = list(part.glob("*.safetensors")) or list(part.glob("*.bin"))
    return [part / "config.json", *weights]


def _files_identity(root: Path, paths: Iterable[Path]) -> str:
    return digest([(path.relative_to(root).as_posix(), file_identity(path)) for path in sorted(paths)])


def _synthesis(path: Path, subject: int) -> dict[str, Any] | None:
    """What the note of a synthetic data set says of one subject; others may be added to the set."""
    if not path.exists():
        return None
    try:
        note = json.loads(path.read_bytes())
        of_subject = note["signal_share_quartiles"].get(str(subject))
        return {"seed": note["seed"], "settings": note["settings_sha256"], "signal": of_subject}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainError(
            f"{path}: expected the note that `python -m sim synthesize` writes: {error!r}"
        ) from error
