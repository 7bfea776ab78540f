"""The provenance of a bundle: stages from base model and checkpoint to its files, linked by SHA-256."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import onnxruntime
from torch import nn

from realtime.bundle.files import file_sha256
from realtime.bundle.spec import Stage
from train.checkpoints.checkpoint import Checkpoint, CheckpointInfo, TrainedSubject

CHECKPOINT_FILES = (
    "checkpoint.json",
    "brain.safetensors",
    "adapter/*",
    "image_unet/*",
    "sub-*/*",
    "synthetic.json",
)
BASE_FILES = ("image_unet/*", "vae/*", "base.json")
_LIBRARIES = ("torch", "diffusers", "peft", "onnx", "onnxscript")

_log = logging.getLogger(__name__)


class Ledger:
    """The stages so far, in order; each has the SHA-256 of the stages that it was made from."""

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages so far."""
        return tuple(self._stages.values())

    def sha256(self, name: str) -> str:
        """SHA-256 of a stage."""
        return self._stages[name].sha256

    def note(
        self,
        name: str,
        sha256: str,
        made_from: Iterable[str] = (),
        *,
        parity: Mapping[str, float] | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        """Add a stage, and log its parity figures."""
        self._stages[name] = Stage(
            name=name,
            sha256=sha256,
            made_from=tuple(self._stages[earlier].sha256 for earlier in made_from),
            parity=dict(parity or {}),
            notes=dict(notes or {}),
        )
        figures = ", ".join(f"{what} {value:.2g}" for what, value in (parity or {}).items())
        _log.info("%-15s %s  %s", name, sha256[:12], figures)


def note_sources(ledger: Ledger, checkpoint: Checkpoint) -> None:
    """Add the stages ``base model`` and ``checkpoint``, the inputs of an export."""
    ledger.note(
        "base model",
        folder_sha256(checkpoint.base_folder, BASE_FILES),
        notes={"files": " ".join(BASE_FILES)},
    )
    info, subject = checkpoint.info, checkpoint.subject
    notes = {"files": " ".join(CHECKPOINT_FILES), "split": info.recipe.split} | _training_notes(info, subject)
    ledger.note("checkpoint", folder_sha256(checkpoint.folder, CHECKPOINT_FILES), ["base model"], notes=notes)


def _training_notes(info: CheckpointInfo, subject: TrainedSubject) -> dict[str, str]:
    if info.imported_from:
        return {"imported_from": info.imported_from}
    notes = {
        "seed": str(info.seed),
        "trials": str(subject.n_train_trials),
        "held_out_runs": " ".join(f"{session}/{run}" for _, session, run in subject.held_out_runs),
    }
    notes |= {"steps": str(info.recipe.fit.steps)} if info.method == "dynadiff" else {"method": info.method}
    if info.n_sessions is not None:
        notes["sessions"] = str(info.n_sessions)
    if info.parent is not None:
        notes["began_with"] = info.parent.identity
    if info.last_loss is not None:
        notes["last_loss"] = f"{info.last_loss:.4f}"
    return notes


def model_stage(checkpoint: Checkpoint) -> str:
    """Name of the stage with all weights, from which the graphs are made."""
    return "merged" if checkpoint.recipe.finetune.layers == "lora" else "model"


def folder_sha256(folder: Path, patterns: Iterable[str]) -> str:
    """SHA-256 of lines ``<sha256>  <path>`` for a folder's files, sorted by path, as ``sha256sum`` prints."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    named = sorted((path.relative_to(folder).as_posix(), path) for path in found)
    return lines_sha256(f"{file_sha256(path)}  {name}" for name, path in named)


def lines_sha256(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def weights_sha256(modules: Mapping[str, nn.Module]) -> str:
    """SHA-256 of the lines ``<sha256 of the numbers>  <module>.<name> <type> <shape>``, sorted."""
    lines = []
    for module, part in sorted(modules.items()):
        for name, tensor in sorted(part.state_dict().items()):
            digest = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
            lines.append(f"{digest}  {module}.{name} {tensor.dtype} {tuple(tensor.shape)}")
    return lines_sha256(lines)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that make an export."""
    versions = {name: version(name) for name in _LIBRARIES}
    return versions | {"onnxruntime": onnxruntime.__version__}
