"""Opens regular files within a folder, without following a link on the way."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from realtime.errors import WireError
from realtime.sources.files.volume_file import MAX_FILE_BYTES

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FILE = os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_within(folder: Path, name: str) -> BinaryIO:
    """Open a file.

    :param name: its path within the folder, with slashes
    :raises OSError: when it cannot be opened, or a link leads to it
    :raises WireError: code ``file``, when it is no regular file
    """
    descriptor = _descriptor(folder, name)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise WireError("file", "expected a regular file")
    return open(descriptor, "rb", closefd=True)


def all_bytes(file: BinaryIO) -> bytes:
    """Read a file. :raises WireError: code ``file``, when it is too large"""
    n_bytes = os.fstat(file.fileno()).st_size
    if n_bytes > MAX_FILE_BYTES:
        raise WireError("file", f"expected a file of at most {MAX_FILE_BYTES} bytes, got {n_bytes}")
    return file.read(MAX_FILE_BYTES)


def _descriptor(folder: Path, name: str) -> int:
    *inner, last = name.split("/")
    if os.open not in os.supports_dir_fd:
        return os.open(folder.joinpath(*inner, last), _FILE)
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for each in inner:
            outer, at = at, os.open(each, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=at)
            os.close(outer)
        return os.open(last, _FILE, dir_fd=at)
    finally:
        os.close(at)
