"""Polls a folder for new complete files and reads them.

Only regular files directly in the folder are opened, never links. A file is read once its size and time of
modification have not changed between two polls. If it is incomplete, it is read again until it is complete or
given up. A file that is overwritten counts as a new file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from realtime.errors import ServeError, WireError
from realtime.sources.files.formats import TooShortError, parse
from realtime.sources.files.slices import SliceFile
from realtime.sources.files.volume_file import MAX_FILE_BYTES, NotWholeError, VolumeFile

SETTLE_S = 0.05
"""A file that has not changed for this time is read."""
AGAIN_S = 0.25
"""An incomplete file is read again after this time."""
LOOKED_AT_AGAIN = 500
"""About this many finished files are checked for changes in each poll."""
_FileState = tuple[int, int]
"""A file's size in bytes and time of modification in ns."""
_OPEN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Waiting:
    """A file that is not finished, and its state at the last poll."""

    state: _FileState
    since_s: float
    """Time of the first poll that saw this state."""
    read_s: float | None = None
    """Time when it was last read and found incomplete."""

    def is_due(self, now_s: float) -> bool:
        """Whether it is time to read it."""
        if self.read_s is None:
            return now_s - self.since_s >= SETTLE_S
        return now_s - self.read_s >= AGAIN_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A volume or slice of a complete file; a file may hold several."""

    name: str
    holds: VolumeFile | SliceFile
    whole_s: float
    """Time of the first poll that saw the file in this state."""
    was_there_before: bool
    """Whether it existed in this state before the folder was watched."""


class Files:
    """The files of a folder; what each holds is reported once.

    :param patience_s: an incomplete file that has not changed for this time is given up
    :raises ServeError: when the folder does not exist
    """

    def __init__(self, folder: Path, patience_s: float) -> None:
        try:
            self.folder = folder.resolve(strict=True)
            with os.scandir(self.folder) as entries:
                there = list(entries)
        except OSError as error:
            raise ServeError(f"expected a folder to watch, got {folder}: {error.strerror}") from error
        self._before: dict[str, _FileState] = {}
        for entry in there:
            with contextlib.suppress(OSError):  # it was deleted after it was listed
                self._before[entry.name] = _file_state(entry)
        self._patience_s = patience_s
        self._waiting: dict[str, _Waiting] = {}
        self._done: dict[str, _FileState] = {}
        """States of the files that were reported or ignored."""
        self._unreported: deque[Found] = deque()
        """What the last file that was read holds besides what was reported."""
        self._foreign: set[str] = set()
        self._look_number = 0
        self._is_away = False

    @property
    def is_settling(self) -> bool:
        """Whether a file has not been read yet."""
        return any(waiting.read_s is None for waiting in self._waiting.values())

    @property
    def n_before(self) -> int:
        """Number of files that existed before."""
        return len(self._before)

    def pass_over_those_before(self) -> None:
        """Ignore the files that existed before, unless they change."""
        self._done |= self._before

    def look(self, now_s: float) -> Iterator[Found]:
        """Poll the folder and yield what the files hold that are complete now.

        The caller may stop at any time; the next call goes on with what the last file holds.
        """
        yield from self._rest()
        for name, state in self._new():
            waiting = self._waiting.get(name)
            if waiting is None or waiting.state != state:
                self._waiting[name] = _Waiting(state=state, since_s=now_s)
            elif waiting.is_due(now_s):
                waiting.read_s = now_s
                was_there = self._before.get(name) == state
                self._unreported.extend(
                    Found(name=name, holds=holds, whole_s=waiting.since_s, was_there_before=was_there)
                    for holds in self._read(name, state, gives_up=now_s - waiting.since_s >= self._patience_s)
                )
                yield from self._rest()

    def _rest(self) -> Iterator[Found]:
        while self._unreported:
            yield self._unreported.popleft()

    def again(self, name: str) -> None:
        """Report a file again at the next poll."""
        self._done.pop(name, None)

    def _new(self) -> list[tuple[str, _FileState]]:
        """Return unfinished regular files and their states, sorted by time of modification."""
        found = []
        self._look_number += 1
        for entry in self._entries():
            is_settled = entry.name in self._done and entry.name not in self._waiting
            if is_settled and not self._is_turn_of(entry.name):
                continue
            try:
                state = _file_state(entry)
                if self._done.get(entry.name) != state and self._is_file(entry, state):
                    found.append((entry.name, state))
            except OSError:
                continue  # it was renamed or deleted after it was listed
        names = {name for name, _ in found}
        self._waiting = {name: waiting for name, waiting in self._waiting.items() if name in names}
        return sorted(found, key=lambda each: (each[1][1], each[0]))

    def _is_turn_of(self, name: str) -> bool:
        """Whether to check a finished file for changes in this poll; checking thousands would take long."""
        n_turns = 1 + len(self._done) // LOOKED_AT_AGAIN
        return zlib.crc32(name.encode(errors="surrogateescape")) % n_turns == self._look_number % n_turns

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder) as entries:
                listed = list(entries)
        except OSError as error:  # for example, a network share is temporarily unavailable
            if not self._is_away:
                _log.warning("cannot list %s: %s; trying again", self.folder, error.strerror)
            self._is_away = True
            return []
        self._is_away = False
        return listed

    def _is_file(self, entry: os.DirEntry[str], state: _FileState) -> bool:
        if entry.is_symlink():
            self._ignore(entry.name, state, "it is a link; only files in the folder itself are read")
        elif entry.name.startswith(".") or not entry.is_file(follow_symlinks=False):
            self._done[entry.name] = state
        else:
            return True
        return False

    def _read(self, name: str, state: _FileState, *, gives_up: bool) -> Sequence[VolumeFile | SliceFile]:
        holds: Sequence[VolumeFile | SliceFile] = ()
        try:
            holds = parse(name, self._bytes(name))
        except TooShortError:
            if not gives_up:
                return ()
        except NotWholeError as error:
            if gives_up:
                self._ignore(name, state, f"incomplete and no longer growing; its volume is missing: {error}")
            return ()
        except OSError as error:
            if gives_up:
                self._ignore(name, state, f"it cannot be read; its volume is missing: {error.strerror}")
            return ()
        except WireError as error:
            self._ignore(name, state, str(error))
            return ()
        self._done[name] = state
        self._waiting.pop(name, None)
        if not holds:
            self._tell_foreign(name)
        return holds

    def _bytes(self, name: str) -> bytes:
        """Read a file. :raises OSError: when it cannot be read; WireError: when it is too large"""
        descriptor = os.open(self.folder / name, _OPEN)
        with open(descriptor, "rb", closefd=True) as file:
            seen = os.fstat(descriptor)
            if not stat.S_ISREG(seen.st_mode) or seen.st_size > MAX_FILE_BYTES:
                raise WireError(
                    "file", f"expected a file of at most {MAX_FILE_BYTES} bytes, got {seen.st_size}"
                )
            return file.read(MAX_FILE_BYTES)

    def _ignore(self, name: str, state: _FileState, why: str) -> None:
        _log.warning("%r is ignored: %s", name, why)
        self._done[name] = state
        self._waiting.pop(name, None)

    def _tell_foreign(self, name: str) -> None:
        """Log one line per suffix of files that are not images."""
        kind = Path(name).suffix or name
        if kind not in self._foreign:
            self._foreign.add(kind)
            _log.info("%r and others like it are ignored: neither NIfTI nor DICOM", name)


def _file_state(entry: os.DirEntry[str]) -> _FileState:
    seen = entry.stat(follow_symlinks=False)
    return seen.st_size, seen.st_mtime_ns
