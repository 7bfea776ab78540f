"""How things are kept on disk: by one process at a time, whole or not at all. Nothing here needs torch."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from train.errors import TrainError

LOCK = ".lock"
_log = logging.getLogger(__name__)


@contextmanager
def alone_in(folder: Path, *, wait: bool) -> Iterator[None]:
    """Keep other processes out of ``folder`` while in the block; this one may enter it again.

    The system gives the folder free when the process ends, however it ends.

    :param wait: until the folder is free, saying so in the log
    :raises TrainError: when another process is in it and ``wait`` is false
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.resolve() / LOCK, is_singleton=True, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise TrainError(
                f"expected to be alone in {folder}, but another process is at work there; wait until it has "
                "ended, or choose another folder"
            ) from None
        _log.info("waiting for another process, which is at work in %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes ``path``, a file or a folder, when the block ends well.

    For one process at a time: :func:`alone_in`.
    """
    # The ending stays, as numpy adds one where it is another.
    partial = path.with_name(f".partial-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    try:
        yield partial
    except BaseException:
        _remove(partial)
        raise
    if path.is_dir():
        _remove(path)  # a folder is only replaced by another when it is empty
    partial.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Write a file of text, so that it is the old one or the new one at any moment."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
