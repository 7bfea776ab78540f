"""A run folder as a tar and back, as streams: of a run of gigabytes, only a block is in memory.

The tar is GNU's, not compressed, so every ``tar`` reads it. It has folders and regular files and nothing
else, all under the name of the folder, in an order that follows from the names. A tar that is read may come
from somebody else: :class:`Unpacker` refuses everything else, and every name that leads out of the folder.
The library's own reader takes a header of whatever size a tar states into memory, so it is not used here.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Generator, Iterator
from typing import NoReturn

from realtime.errors import RecordError
from realtime.record.storage import Folder, write_all

_BLOCK_BYTES = 2**20
_MAX_NAME_BYTES = 4096
_ENCODING = "utf-8"
_END = bytes(tarfile.BLOCKSIZE)

_Unpacking = Generator[int, bytes, None]
"""Yields how many bytes it needs next, and is sent them."""


def pack(folder: Folder, name: str, dated_s: float, *, without: str) -> Iterator[bytes]:
    """The bytes of a folder's tar; the same again as long as nothing is written in the folder.

    :param name: of the folder in the tar
    :param dated_s: the date of folders, whose own changes with every file that comes and goes
    :param without: a file of the folder that is left out
    :raises RecordError: when something in the folder cannot be read, or is no regular file and no folder
    """
    yield from _pack(folder, name, dated_s, without)
    yield 2 * _END


def _pack(folder: Folder, name: str, dated_s: float, without: str) -> Iterator[bytes]:
    yield _header(name, dated_s, is_folder=True)
    for each in folder.names():
        if each == without:
            continue
        if folder.has_folder(each):
            with folder.sub(each) as sub:
                yield from _pack(sub, f"{name}/{each}", dated_s, "")
        else:
            yield from _pack_file(folder, each, f"{name}/{each}")


def _pack_file(folder: Folder, file_name: str, name: str) -> Iterator[bytes]:
    path = folder.path / file_name
    with os.fdopen(folder.open_read(file_name), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        yield _header(name, status.st_mtime, n_bytes=status.st_size)
        rest = status.st_size
        while rest:
            try:
                block = file.read(min(rest, _BLOCK_BYTES))
            except OSError as error:
                raise RecordError(f"cannot read {path}: {error.strerror or error}") from error
            if not block:
                raise RecordError(f"{path} was cut while it was read; try again when nothing writes there")
            rest -= len(block)
            yield block
        yield bytes(-status.st_size % tarfile.BLOCKSIZE)


def _header(name: str, modified_s: float, *, n_bytes: int = 0, is_folder: bool = False) -> bytes:
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE if is_folder else tarfile.REGTYPE
    member.mode = 0o700 if is_folder else 0o600
    member.size, member.mtime = n_bytes, max(0, int(modified_s))
    if len(os.fsencode(name)) >= _MAX_NAME_BYTES:  # with the byte that ends it
        raise RecordError(f"expected a name of less than {_MAX_NAME_BYTES} bytes, got {name!a}")
    try:
        return member.tobuf(tarfile.GNU_FORMAT, _ENCODING, "strict")
    except UnicodeEncodeError as error:
        raise RecordError(f"expected the name of a file in UTF-8, got {name!a}; rename the file") from error


class Unpacker:
    """Writes what is in a tar into a new folder, in place of the one folder that the tar has."""

    def __init__(self, folder: Folder) -> None:
        self._unpacking = _unpack(folder)
        self._n_wanted = next(self._unpacking)
        self._held = bytearray()

    @property
    def has_ended(self) -> bool:
        """Whether the end of the tar was taken."""
        return self._n_wanted == 0

    def take(self, block: bytes) -> None:
        """Take the next bytes of the tar.

        :raises RecordError: when it is no such tar
        :raises OSError: when the disk does not take what is in it
        """
        self._held += block
        used = 0
        while self._n_wanted and len(self._held) - used >= self._n_wanted:
            wanted = bytes(self._held[used : used + self._n_wanted])
            used += self._n_wanted
            self._n_wanted = self._unpacking.send(wanted)
        del self._held[:used]
        if self.has_ended:
            if any(self._held):
                _refuse("something is behind the end of its tar")
            self._held.clear()

    def close(self) -> None:
        """Close the file that is being written, if the tar has not ended."""
        self._unpacking.close()


def _unpack(folder: Folder) -> _Unpacking:
    """As :class:`Unpacker`; the last that it yields is 0."""
    root, long_name = "", ""
    while (block := (yield tarfile.BLOCKSIZE)) != _END:
        member = _member(block)
        if member.type == tarfile.GNUTYPE_LONGNAME:
            long_name = yield from _long_name(member)
            continue
        root, *parts = _parts(long_name or member.name, root)
        long_name = ""
        if member.type == tarfile.DIRTYPE:
            _make_folder(folder, parts)
        elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and parts:
            yield from _unpack_file(folder, parts, member.size)
        else:
            _refuse(f"expected only regular files and folders, found {member.name!a}, which is neither")
    yield 0


def _member(block: bytes) -> tarfile.TarInfo:
    try:
        # The name before a long one is cut off, perhaps within a character.
        member = tarfile.TarInfo.frombuf(block, _ENCODING, "surrogateescape")
    except tarfile.HeaderError as error:
        raise RecordError(f"it holds no tar, or a damaged one: {error}") from error
    if member.size < 0:
        _refuse(f"a size of {member.size} bytes is stated")
    return member


def _long_name(member: tarfile.TarInfo) -> Generator[int, bytes, str]:
    if not 0 < member.size <= _MAX_NAME_BYTES:
        _refuse(f"expected a name of at most {_MAX_NAME_BYTES} bytes, found {member.size}")
    name = yield _padded(member.size)
    return name[: member.size].rstrip(b"\0").decode(_ENCODING, "surrogateescape")


def _parts(name: str, root: str) -> list[str]:
    """The components of a member's name, of which the first is the tar's one folder."""
    if any("\ud800" <= character <= "\udfff" for character in name):
        _refuse(f"the name {name!a} is not UTF-8")
    parts = name.rstrip("/").split("/")
    if any(part in ("", ".", "..") or set(part) & {"\\", "\0"} for part in parts):
        _refuse(f"the name {name!r} leads out of the folder")
    if root not in ("", parts[0]):
        _refuse(f"expected one folder, found {root!r} and {parts[0]!r}")
    return parts


def _make_folder(folder: Folder, parts: list[str]) -> None:
    if parts:
        with _parent(folder, parts) as parent:
            parent.make_sub(parts[-1]).close()


def _unpack_file(folder: Folder, parts: list[str], n_bytes: int) -> _Unpacking:
    with _parent(folder, parts) as parent:
        if parent.has(parts[-1]):
            _refuse(f"{'/'.join(parts)} is in it twice")
        descriptor = parent.open_append(parts[-1])
    try:
        rest = n_bytes
        while rest:
            block = yield min(rest, _BLOCK_BYTES)
            write_all(descriptor, block)
            rest -= len(block)
    finally:
        os.close(descriptor)
    if padding := -n_bytes % tarfile.BLOCKSIZE:
        yield padding


@contextlib.contextmanager
def _parent(folder: Folder, parts: list[str]) -> Iterator[Folder]:
    """The folder of a member, opened component by component."""
    with contextlib.ExitStack() as stack:
        for part in parts[:-1]:
            folder = stack.enter_context(folder.sub(part))
        yield folder


def _padded(n_bytes: int) -> int:
    return n_bytes + -n_bytes % tarfile.BLOCKSIZE


def _refuse(why: str) -> NoReturn:
    raise RecordError(f"it is not taken apart: {why}")
