"""Decodes kept on disk, so that what comes after them can fail without the hours they took."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime.atomic import whole
from train.checkpoints.checkpoint import Checkpoint
from train.model.sample import Pictures

_log = logging.getLogger(__name__)


def kept(path: Path, made_from: str, decode: Callable[[], Pictures]) -> Pictures:
    """What ``decode`` gives, from ``path`` where that holds it already; else it is written there.

    :param path: of a ``.npz`` with ``pictures`` uint8 ``[n, H, W, 3]`` and ``made_from``
    :param made_from: identity of all that decodes depend on but device and libraries
    """
    pictures = _read(path, made_from)
    if pictures is not None:
        _log.info("decoded before, read from %s", path)
        return pictures
    pictures = decode()
    with whole(path) as partial:
        np.savez(partial, pictures=pictures, made_from=np.array(made_from))
    return pictures


def _read(path: Path, made_from: str) -> Pictures | None:
    """None where there are none, or others, or the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as held:
            if held["made_from"].item() != made_from:
                return None
            pictures: Pictures = held["pictures"]
    except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile):
        return None
    return pictures if pictures.dtype == np.uint8 and pictures.ndim == 4 else None


def weights_digest(checkpoint: Checkpoint) -> str:
    """Of all weights as read, which do not all lie in the checkpoint: some seconds for one of full size."""
    found = hashlib.sha256(checkpoint.null_NW.cpu().numpy().tobytes())
    for module in (checkpoint.brain, checkpoint.unet, checkpoint.vae):
        for name, value in module.state_dict().items():
            found.update(name.encode())
            found.update(value.cpu().numpy().tobytes())
    return found.hexdigest()


def array_digest(array: NDArray[Any]) -> str:
    """Of an array's numbers in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
