"""A lock on a folder, so that one process at a time writes into it. Does not import torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from train.errors import TrainError

LOCK = ".lock"
_log = logging.getLogger(__name__)


@contextmanager
def alone_in(folder: Path, *, wait: bool) -> Iterator[None]:
    """Lock ``folder`` against other processes while in the block; the same process may lock it again.

    The operating system releases the lock when the process ends, even if it is killed.

    :param wait: wait until the folder is free, and say so in the log
    :raises TrainError: another process holds the lock, and ``wait`` is false
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.resolve() / LOCK, is_singleton=True, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise TrainError(
                f"expected no other process in {folder}, but one is writing there; wait until it has ended, "
                "or choose another folder"
            ) from None
        _log.info("waiting for another process that is writing in %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
