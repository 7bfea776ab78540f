"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path, writer: str = "", *, replaces: bool = True) -> Iterator[Path]:
    """Where to write what becomes ``path``, a file or a folder, when the block ends without an error.

    Until then ``path`` stays as it was, and after an error too. One process at a time may write a path: the
    place to write has one name, so that what a killed process left there is removed by the next.

    :param writer: where several processes may write a path, a name of this one; the last to end wins
    :param replaces: whether a folder with content may be at ``path``; if not, it stays, and OSError is raised
    """
    # The suffix stays, because numpy adds one of its own to a name with another suffix.
    name = f"{writer}-{path.name}" if writer else path.name
    partial = path.with_name(f".partial-{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    try:
        yield partial
        if replaces and path.is_dir():
            _replace_folder(partial, path, path.with_name(f".older-{name}"))
        else:
            partial.replace(path)
    except BaseException:
        _remove(partial)
        raise


def write_whole(path: Path, content: bytes | str, *, private: bool = False) -> None:
    """Write a file, text as UTF-8, so that it is the old one or the new one at any moment.

    A link in the file's place is replaced; what it leads to stays.

    :param private: whether only this user may read it; if not, the umask says who may
    """
    encoded = content.encode() if isinstance(content, str) else content
    opener = functools.partial(os.open, mode=0o600 if private else 0o666)
    # "x": nothing is written into what another process put there in the meantime.
    with whole(path) as partial, open(partial, "xb", opener=opener) as file:
        file.write(encoded)


def _replace_folder(partial: Path, path: Path, older: Path) -> None:
    # A folder replaces another only where that is empty; the older one comes back if the second rename fails.
    _remove(older)
    path.rename(older)
    try:
        partial.rename(path)
    except OSError:
        older.rename(path)
        raise
    _remove(older)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
