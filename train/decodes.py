"""Decodes kept on disk, so that what comes after them can fail without the hours they took.

FOLDER/<way>.npy     uint8 [n, H, W, 3]
FOLDER/<way>.json    what they were decoded from, written last: Identity
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from train.checkpoint import Checkpoint
from train.sample import Pictures

_log = logging.getLogger(__name__)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """All that decodes depend on but device and libraries; digests are SHA-256 in hexadecimal."""

    checkpoint_json: str
    weights: str
    """Of brain module, null condition, UNet and VAE as read: the base model lies outside the checkpoint."""
    trials: list[list[int]]
    """Presentations by their place in the cache, in groups that were decoded together."""
    decoded_from: str
    """Of the windows ``[n, V, T]``."""
    seed: int


def checkpoint_digests(checkpoint: Checkpoint) -> tuple[str, str]:
    """Of ``checkpoint.json``, and of all weights: some seconds for a model of full size."""
    info = hashlib.sha256((checkpoint.folder / "checkpoint.json").read_bytes()).hexdigest()
    weights = hashlib.sha256(checkpoint.null_NW.cpu().numpy().tobytes())
    for module in (checkpoint.brain, checkpoint.unet, checkpoint.vae):
        for name, value in module.state_dict().items():
            weights.update(name.encode())
            weights.update(value.cpu().numpy().tobytes())
    return info, weights.hexdigest()


def array_digest(array: NDArray[Any]) -> str:
    """Of an array's numbers in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def kept(folder: Path, way: str, identity: Identity, decode: Callable[[], Pictures]) -> Pictures:
    """What ``decode`` gives, from ``folder`` where that holds it already; else it is written there."""
    pictures_path, identity_path = (folder / f"{way.replace(' ', '_')}.{kind}" for kind in ("npy", "json"))
    pictures = _read(pictures_path, identity_path, identity)
    if pictures is not None:
        _log.info("%s: decoded before, read from %s", way, pictures_path)
        return pictures
    pictures = decode()
    folder.mkdir(parents=True, exist_ok=True)
    identity_path.unlink(missing_ok=True)  # it is of the older pictures
    partial = pictures_path.with_suffix(".npy.part")
    with partial.open("wb") as file:
        np.save(file, pictures)
    partial.replace(pictures_path)
    partial = identity_path.with_suffix(".json.part")
    partial.write_bytes(msgspec.json.encode(identity))
    partial.replace(identity_path)
    return pictures


def _read(pictures_path: Path, identity_path: Path, identity: Identity) -> Pictures | None:
    """None where there are none, or others."""
    try:
        if msgspec.json.decode(identity_path.read_bytes(), type=Identity) != identity:
            return None
        pictures: Pictures = np.load(pictures_path, allow_pickle=False)
    except (EOFError, OSError, ValueError):  # a msgspec error is a ValueError
        return None
    is_whole = pictures.dtype == np.uint8 and pictures.ndim == 4 and len(pictures) == len(identity.trials)
    return pictures if is_whole else None
