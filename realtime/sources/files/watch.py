"""The files that come into a folder: which are new and whole, and what they hold.

Only regular files directly in the folder are opened, by name within it, never through a link. A file is read
once it looked the same twice; what is not whole then is read again until it is, or is given up. One that is
written anew under its old name is another file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from realtime.errors import ServeError, WireError
from realtime.sources.files import dicom, nifti
from realtime.sources.files.slices import SliceFile
from realtime.sources.files.volume_file import MAX_FILE_BYTES, NotWholeError, VolumeFile

SETTLE_S = 0.05
"""A file that is the same after this time is read."""
AGAIN_S = 0.25
"""One that is not whole then is read again after this time."""
LOOKED_AT_AGAIN = 500
"""About so many of the files that are done are looked at each time."""
_Looks = tuple[int, int]
"""A file's size in bytes and the time of its last change in ns."""
_OPEN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Waiting:
    """A file that has not been taken yet, as it looked last."""

    looks: _Looks
    since_s: float
    """Since when it looks so."""
    read_s: float | None = None
    """When it was last read, and was not whole."""

    def is_due(self, now_s: float) -> bool:
        """Whether it is time to read it."""
        if self.read_s is None:
            return now_s - self.since_s >= SETTLE_S
        return now_s - self.read_s >= AGAIN_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file that is whole."""

    name: str
    holds: VolumeFile | SliceFile
    whole_s: float
    """When it was first seen as it was read."""
    was_there_before: bool
    """Whether it was there, as it is now, before the folder was watched."""


class Files:
    """A folder's files, each told once.

    :param patience_s: a file that is not whole is given up when it has not changed for so long.
    :raises ServeError: where there is no such folder.
    """

    def __init__(self, folder: Path, patience_s: float) -> None:
        try:
            self.folder = folder.resolve(strict=True)
            with os.scandir(self.folder) as entries:
                there = list(entries)
        except OSError as error:
            raise ServeError(f"expected a folder to watch, got {folder}: {error.strerror}") from error
        self._before: dict[str, _Looks] = {}
        for entry in there:
            with contextlib.suppress(OSError):  # it has gone since it was listed
                self._before[entry.name] = _looks(entry)
        self._patience_s = patience_s
        self._waiting: dict[str, _Waiting] = {}
        self._done: dict[str, _Looks] = {}
        """How those looked that were told or passed over."""
        self._foreign: set[str] = set()
        self._look_number = 0
        self._is_away = False

    @property
    def is_settling(self) -> bool:
        """Whether a file is there that was not read yet."""
        return any(waiting.read_s is None for waiting in self._waiting.values())

    @property
    def n_before(self) -> int:
        """How many files were there before."""
        return len(self._before)

    def pass_over_those_before(self) -> None:
        """Never tell the files that were there before, as they are."""
        self._done |= self._before

    def look(self, now_s: float) -> Iterator[Found]:
        """Files that are now whole; the others wait for the next look."""
        for name, looks in self._new():
            waiting = self._waiting.get(name)
            if waiting is None or waiting.looks != looks:
                self._waiting[name] = _Waiting(looks=looks, since_s=now_s)
            elif waiting.is_due(now_s):
                waiting.read_s = now_s
                holds = self._read(name, looks, gives_up=now_s - waiting.since_s >= self._patience_s)
                if holds:
                    was_there = self._before.get(name) == looks
                    yield Found(name=name, holds=holds, whole_s=waiting.since_s, was_there_before=was_there)

    def again(self, name: str) -> None:
        """Tell a file at the next look once more."""
        self._done.pop(name, None)

    def _new(self) -> list[tuple[str, _Looks]]:
        """Regular files that are not done, and how they look; in the order in which they were written."""
        found = []
        self._look_number += 1
        for entry in self._entries():
            is_settled = entry.name in self._done and entry.name not in self._waiting
            if is_settled and not self._is_turn_of(entry.name):
                continue
            try:
                looks = _looks(entry)
                if self._done.get(entry.name) != looks and self._is_file(entry, looks):
                    found.append((entry.name, looks))
            except OSError:
                continue  # it was renamed or deleted since it was listed
        names = {name for name, _ in found}
        self._waiting = {name: waiting for name, waiting in self._waiting.items() if name in names}
        return sorted(found, key=lambda each: (each[1][1], each[0]))

    def _is_turn_of(self, name: str) -> bool:
        """Whether to see now if a file that is done was written anew: thousands at once would take long."""
        n_turns = 1 + len(self._done) // LOOKED_AT_AGAIN
        return zlib.crc32(name.encode(errors="surrogateescape")) % n_turns == self._look_number % n_turns

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder) as entries:
                listed = list(entries)
        except OSError as error:  # a network share that is away for a while
            if not self._is_away:
                _log.warning("cannot look into %s: %s; looking again", self.folder, error.strerror)
            self._is_away = True
            return []
        self._is_away = False
        return listed

    def _is_file(self, entry: os.DirEntry[str], looks: _Looks) -> bool:
        if entry.is_symlink():
            self._pass(entry.name, looks, "a link; only files in the folder itself are read")
        elif entry.name.startswith(".") or not entry.is_file(follow_symlinks=False):
            self._done[entry.name] = looks
        else:
            return True
        return False

    def _read(self, name: str, looks: _Looks, *, gives_up: bool) -> VolumeFile | SliceFile | None:
        holds = None
        try:
            holds = parse(name, self._bytes(name))
        except _TooShortError:
            if not gives_up:
                return None
        except NotWholeError as error:
            if gives_up:
                self._pass(name, looks, f"not whole, and no longer growing; its volume is missing: {error}")
            return None
        except OSError as error:
            if gives_up:
                self._pass(name, looks, f"it cannot be read; its volume is missing: {error.strerror}")
            return None
        except WireError as error:
            self._pass(name, looks, str(error))
            return None
        self._done[name] = looks
        self._waiting.pop(name, None)
        if holds is None:
            self._tell_foreign(name)
        return holds

    def _bytes(self, name: str) -> bytes:
        """:raises OSError: where it cannot be opened; WireError: where it cannot hold a volume."""
        descriptor = os.open(self.folder / name, _OPEN)
        with open(descriptor, "rb", closefd=True) as file:
            seen = os.fstat(descriptor)
            if not stat.S_ISREG(seen.st_mode) or seen.st_size > MAX_FILE_BYTES:
                raise WireError("file", f"expected a file of at most {MAX_FILE_BYTES} bytes")
            return file.read(MAX_FILE_BYTES)

    def _pass(self, name: str, looks: _Looks, why: str) -> None:
        _log.warning("%r is passed over: %s", name, why)
        self._done[name] = looks
        self._waiting.pop(name, None)

    def _tell_foreign(self, name: str) -> None:
        """One line for all files of a kind."""
        kind = Path(name).suffix or name
        if kind not in self._foreign:
            self._foreign.add(kind)
            _log.info("%r is passed over, and others like it: it is neither NIfTI nor DICOM", name)


class _TooShortError(NotWholeError):
    """A file of which there is too little to know whether it is an image."""

    def __init__(self) -> None:
        super().__init__("too short to know what it is")


def _looks(entry: os.DirEntry[str]) -> _Looks:
    seen = entry.stat(follow_symlinks=False)
    return seen.st_size, seen.st_mtime_ns


def parse(name: str, data: bytes) -> VolumeFile | SliceFile | None:
    """What a file holds; None where it is no image.

    :raises NotWholeError: when its end is missing; WireError: where it is an image that cannot be taken.
    """
    if name.lower().endswith(nifti.SUFFIXES):
        return nifti.read(name, data)
    if data[dicom.MARK_AT :].startswith(dicom.MARK):
        return dicom.read(data)
    if name.lower().endswith(dicom.SUFFIXES):
        raise NotWholeError("expected the mark of a DICOM file")
    if len(data) < dicom.MARK_AT + len(dicom.MARK):
        raise _TooShortError
    return None
