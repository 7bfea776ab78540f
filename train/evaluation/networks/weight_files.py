"""Where the evaluation networks' weights are: in a folder that the user names, or in a cache.

The caches are those of torch.hub and of the Hugging Face Hub's client. Nothing is downloaded without being
asked for, because the networks take several GB: for missing weights, the user is told the command to run.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from train.evaluation.networks.dreamsim import DINO, FILES


class Weights(Protocol):
    """The weights of one network."""

    def find(self, folder: Path | None) -> Path | None:
        """Their path in ``folder``, else in a cache; None when they are in neither."""
        ...

    def fetch(self, folder: Path) -> str:
        """The command that downloads them into ``folder``."""
        ...


@dataclass(frozen=True, kw_only=True)
class File:
    """One file, as torchvision and torch.hub store it."""

    url: str

    def find(self, folder: Path | None) -> Path | None:
        """See :class:`Weights`."""
        cached = Path(torch.hub.get_dir()) / "checkpoints" / self._name
        places = [folder / self._name, cached] if folder else [cached]
        return next((place for place in places if place.exists()), None)

    def fetch(self, folder: Path) -> str:
        """See :class:`Weights`."""
        return _download(self.url, folder / self._name)

    @property
    def _name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model in transformers' layout, in a folder with its name on the hub."""

    repository: str

    FILES = ["config.json", "model.safetensors"]

    def find(self, folder: Path | None) -> Path | None:
        """See :class:`Weights`."""
        if folder and self._is_whole(folder / self._name):
            return folder / self._name
        try:
            cached = Path(
                snapshot_download(self.repository, allow_patterns=self.FILES, local_files_only=True)
            )
        except LocalEntryNotFoundError:
            return None
        return cached if self._is_whole(cached) else None

    def fetch(self, folder: Path) -> str:
        """See :class:`Weights`."""
        return (
            f"hf download {self.repository} {' '.join(self.FILES)} --local-dir {_quoted(folder / self._name)}"
        )

    @property
    def _name(self) -> str:
        return self.repository.rpartition("/")[2]

    def _is_whole(self, folder: Path) -> bool:
        return all((folder / name).exists() for name in self.FILES)


@dataclass(frozen=True, kw_only=True)
class DreamSimFolder:
    """The folder ``dreamsim``: see :mod:`train.evaluation.networks.dreamsim`."""

    ENSEMBLE_URL = (
        "https://github.com/ssundaram21/dreamsim/releases/download/v0.2.0-checkpoints/"
        "dreamsim_ensemble_checkpoint.zip"
    )
    DINO_URL = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"

    def find(self, folder: Path | None) -> Path | None:
        """See :class:`Weights`; the authors' package keeps no shared cache to look in."""
        own = folder / "dreamsim" if folder else None
        return own if own and all((own / name).exists() for name in FILES) else None

    def fetch(self, folder: Path) -> str:
        """See :class:`Weights`."""
        own = folder / "dreamsim"
        archive = own / "pretrained.zip"
        return " && ".join(  # DINO's weights come last: a folder that has them was unpacked completely
            [
                _download(self.ENSEMBLE_URL, archive),
                f"unzip -o {_quoted(archive)} -d {_quoted(own)}",
                _download(self.DINO_URL, own / DINO),
            ]
        )


def _download(url: str, path: Path) -> str:
    """A command that downloads a file; an interrupted download leaves ``<path>.part``, which is ignored."""
    part = _quoted(path.with_name(f"{path.name}.part"))
    return f"curl -fL --create-dirs -o {part} {url} && mv {part} {_quoted(path)}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
