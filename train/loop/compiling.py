"""Says what DeepSpeed does when a first training on a CPU seems to stand still."""

from __future__ import annotations

import logging
import os
from pathlib import Path

_NAME = "deepspeed_shm_comm"
"""DeepSpeed's communication between CPU processes, which torch compiles for a single process too."""
_log = logging.getLogger(__name__)


def tell_of_compiling() -> None:
    """Say that the communication will be compiled, or that it is waited for.

    torch locks the folder while it compiles, and waits for a lock without a word. A process that is killed
    meanwhile leaves its lock.
    """
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() != "cpu":
        return
    folders = _folders()
    locks = [lock for folder in folders if (lock := folder / "lock").exists()]
    if locks:
        _log.warning(
            "waiting for another process, which compiles DeepSpeed's communication for CPUs. If there is "
            "none, an earlier one was killed and has left its lock: remove %s",
            locks[0],
        )
    elif not any((folder / f"{_NAME}.so").exists() for folder in folders):
        _log.info("DeepSpeed compiles its communication for CPUs, this once; it takes some two minutes")


def _folders() -> list[Path]:
    """Where torch keeps what it has compiled of it, for its versions and Python's."""
    from torch.utils.cpp_extension import get_default_build_root

    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    return [Path(chosen) / _NAME] if chosen else sorted(Path(get_default_build_root()).glob(f"*/{_NAME}"))
