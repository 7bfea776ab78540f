"""Decodes kept on disk, so that a later failure does not cost the hours that decoding took."""

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
    """Read the pictures in ``path`` if they were made from ``made_from``; else decode, and write them there.

    :param path: an ``.npz`` file with ``pictures`` uint8 ``[n, H, W, 3]`` and ``made_from``
    :param made_from: fingerprint of everything that the decodes depend on, except device and libraries
    """
    pictures = _read(path, made_from)
    if pictures is not None:
        _log.info("already decoded: reading %s", path)
        return pictures
    pictures = decode()
    with whole(path) as partial:
        np.savez(partial, pictures=pictures, made_from=np.array(made_from))
    return pictures


def _read(path: Path, made_from: str) -> Pictures | None:
    """The pictures in ``path``; None when it is missing, damaged, or made from something else."""
    try:
        with np.load(path, allow_pickle=False) as held:
            if held["made_from"].item() != made_from:
                return None
            pictures: Pictures = held["pictures"]
    except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile):
        return None
    return pictures if pictures.dtype == np.uint8 and pictures.ndim == 4 else None


def weights_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 of all weights, including those of the base model; takes some seconds at full size."""
    found = hashlib.sha256(checkpoint.null_NW.cpu().numpy().tobytes())
    for module in (checkpoint.brain, checkpoint.unet, checkpoint.vae):
        for name, value in module.state_dict().items():
            found.update(name.encode())
            found.update(value.cpu().numpy().tobytes())
    return found.hexdigest()


def array_digest(array: NDArray[Any]) -> str:
    """SHA-256 of an array's numbers in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
