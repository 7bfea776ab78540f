"""Opens the files of a bundle, which may come from a stranger: regular files only, of a limited size."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from realtime.errors import BundleError

MAX_FILE_BYTES = 2**36
"""Limit of any file of a bundle, 64 GiB: a sparse file can be so large that to hash it takes days."""


def open_regular(path: Path, limit: int = MAX_FILE_BYTES) -> io.BufferedReader:
    """Open a file for reading, without waiting for anything but the disk; links are followed.

    :raises OSError: when it cannot be opened
    :raises BundleError: when it is not a regular file, or is larger than ``limit`` bytes
    """
    file = open(path, "rb", opener=_open_without_waiting)
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_size <= limit:
        return file
    file.close()
    if stat.S_ISREG(found.st_mode):
        problem = f"expected at most {limit} bytes, found {found.st_size}"
    else:
        problem = "expected a regular file, found a FIFO or a device"
    raise BundleError(f"{path}: {problem}; copy the bundle again from a source that you trust")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no such flag, and no FIFOs


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a small file.

    :raises BundleError: when it cannot be read, is not a regular file, or is larger than ``limit`` bytes
    """
    try:
        with open_regular(path, limit) as file:
            return file.read(limit)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}; is this folder a bundle?") from error
