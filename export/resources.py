"""Checks free disk space and memory before an export."""

from __future__ import annotations

import ctypes
import gc
import platform
import shutil
import sys
from pathlib import Path

import psutil
import torch

from export.errors import ExportError
from export.precision_forms import Form, stored_bytes
from train.checkpoints.checkpoint import CheckpointInfo
from train.model.base_model import make_unet, make_vae

_PEAK_BYTES_PER_WEIGHT = 10
"""Peak memory of an export at full size, per weight of the model: benchmarks/full_size_export.py."""
_LIBRARIES_BYTES = 10**9
"""Memory of torch, diffusers and ONNX Runtime themselves."""
_SLACK = 1.05
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "bad allocation", "bad_alloc")


def count_weights(folder: Path, info: CheckpointInfo) -> int:
    """Number of weights in a checkpoint's model, counted without loading them."""
    with torch.device("meta"):
        parts = [make_unet(info.recipe.base), make_vae(info.recipe.base)]
    brain = folder / "brain.safetensors"
    n_brain = brain.stat().st_size // 4 if brain.exists() else 0  # the error is raised when it is read
    counted: int = n_brain + sum(weight.numel() for part in parts for weight in part.parameters())
    return counted


def check_memory(n_weights: int) -> None:
    """Check that there is enough memory to load and run the model.

    :raises ExportError: too little memory is free
    """
    need = n_weights * _PEAK_BYTES_PER_WEIGHT + _LIBRARIES_BYTES
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    if free < need:
        raise ExportError(
            f"expected about {need / 1e9:.1f} GB of free memory, found {free / 1e9:.1f} GB; nothing was "
            "written. End other programs, or use a larger machine"
        )


def check_disk(n_weights: int, form: Form, out: Path) -> None:
    """Check that there is enough disk space for the bundle and for the fp32 graphs during the export.

    :raises ExportError: too little disk space is free
    """
    scratch = 0 if form == "fp32" else 4
    need = int(n_weights * (stored_bytes(form) + scratch) * _SLACK)
    place = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise ExportError(
            f"expected {need / 1e9:.1f} GB of free disk at {place}, found {free / 1e9:.1f} GB; nothing was "
            "written. Delete files, or choose another --out"
        )


def give_back_memory() -> None:
    """Return unused memory to the system: cycles of Python objects, and freed memory that glibc keeps.

    After a session of ONNX Runtime has ended, this is about half of its memory.
    """
    gc.collect()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of Python, torch or ONNX Runtime means that memory ran out."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)
