"""Polls a folder and its subfolders for new complete files and reads them.

Only regular files are opened, never links. A file is read once its size and time of modification have not
changed between two polls. If it is incomplete, it is read again until it is complete or given up. A file that
looks as if bytes were still to come (see ``zeros``) must stay the same for longer, unless a file of the same
name that ends in ``.done`` says that it is whole. Those of its series that came after it wait for it. A file
that is overwritten counts as a new file.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from pathlib import Path

from realtime.errors import WireError
from realtime.sources.files import run_file
from realtime.sources.files.file_names import FileNames
from realtime.sources.files.formats import (
    TooShortError,
    UnnamedError,
    describes,
    names_beside,
    parse,
    suffix,
)
from realtime.sources.files.name_parts import SUFFIX
from realtime.sources.files.opening import all_bytes, open_within
from realtime.sources.files.run_file import RunFile
from realtime.sources.files.said_once import SaidOnce
from realtime.sources.files.slices import SliceFile
from realtime.sources.files.tree import Tree
from realtime.sources.files.volume_file import NotWholeError, VolumeFile
from realtime.sources.files.waiting import AGAIN_S, FileState, Waiting
from realtime.sources.files.whole import DONE, HOLLOW_S, WholeFiles

LOOKED_AT_AGAIN = 500
"""So many finished files are checked for changes in each poll; a tenth are those that were finished last."""
BACKLOG_AT_ONCE = 200
"""So many files that existed before are taken up at once."""
LISTED_AT_LEAST_S = 1.0
"""While files come by events, or settle, folders are listed so often only: a large one takes long."""
UNFINISHED = (".part", ".partial", ".filepart", ".crdownload", ".tmp", ".temp", ".lock")
"""Suffixes of files that get another name when they are whole."""
_HEAD_BYTES = 2**16
_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\d.]*(?:e[-+]?\d+)?")
"""Numbers and quotations, in which messages of one kind differ."""
_NUMBERS = re.compile(r"(\d+)")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A volume or slice of a complete file; a file may hold several."""

    name: str
    """Path within the watched folder, with slashes."""
    holds: VolumeFile | SliceFile
    whole_s: float
    """Time of the first poll that saw the file in this state."""
    was_there_before: bool
    """Whether it existed in this state before the folder was watched."""


class Files:
    """The files of a folder; what each holds is reported once.

    :param patience_s: an incomplete file that has not changed for this time is given up
    :param longest_s: files older than the newest by more than this are of no run that is still open
    :raises ServeError: when the folder does not exist
    """

    def __init__(self, folder: Path, patience_s: float, longest_s: float = 86_400.0) -> None:
        self.tree = Tree(folder)
        self._before = {name: _file_state(seen) for name in self.tree.all() if (seen := self.tree.seen(name))}
        self._patience_s = patience_s
        self._backlog = self._of_an_open_run(longest_s)
        """Names of files that existed before and are still to be read, the oldest first."""
        self._waiting: dict[str, Waiting] = {}
        self._done = self._before.copy()
        """States of the files that were reported or ignored."""
        self._given_up: set[str] = set()
        self._n_came = 0
        self._begun: set[str] = set()
        """Series of which something was reported."""
        self._runs: dict[str, RunFile] = {}
        self._names = FileNames()
        self._say_once = SaidOnce(_log, self.tree.folder)
        self._whole = WholeFiles(self.tree, patience_s, self._say_once)
        self._unreported: Iterator[Found] = iter(())
        """What the last file that was read holds besides what was reported."""
        self._touched: deque[str] = deque()
        """Filled while a poll may run in another thread."""
        self._listed_s = float("-inf")
        self._turns: Iterator[str] = iter(())

    @property
    def folder(self) -> Path:
        """The watched folder."""
        return self.tree.folder

    @property
    def is_settling(self) -> bool:
        """Whether a file has not been read yet."""
        return bool(self._backlog) or any(waiting.read_s is None for waiting in self._waiting.values())

    @property
    def is_held_up(self) -> bool:
        """Whether something of a series waits for bytes, for other names, or for a file before it."""
        return any(each.series or each.is_unnamed for each in self._waiting.values())

    @property
    def n_before(self) -> int:
        """Number of files that existed before."""
        return len(self._before)

    def pass_over_those_before(self) -> None:
        """Ignore the files that existed before, unless they change."""
        self._backlog.clear()

    def touch(self, paths: Iterable[str]) -> None:
        """Look at these files at the next poll; the file system says that something happened to them."""
        self._touched.extend(name for path in paths if (name := self.tree.name(path)))

    def look(self, now_s: float) -> Iterator[Found]:
        """Poll the folder and yield what the files hold that are complete now.

        The caller may stop at any time; the next call goes on with what the last file holds.
        """
        for found in self._unreported:  # not ``yield from``: that would end it when the caller stops
            yield found
        changed = self._changed(now_s)
        named = {name for name, (_, mtime_ns) in changed if self._is_named(name, mtime_ns)}
        for name, state in changed:
            waiting = self._waiting.get(name)
            is_due = waiting is not None and waiting.state == state and waiting.is_due(now_s)
            if waiting is None or waiting.state != state:
                before, waiting = waiting, self._waits_from_now(name, state, now_s)
                if before and now_s - before.looked_s >= AGAIN_S:
                    waiting.looked_s = now_s  # it never settles; a run may be written slice by slice
                    is_due = self._is_run(name)
            if is_due or (waiting.is_unnamed and name in named):
                waiting.read_s = now_s
                self._unreported = self._read(name, waiting, now_s)
                for found in self._unreported:
                    yield found

    def _is_named(self, name: str, mtime_ns: int) -> bool:
        """Learn from a file's name as soon as it is there; return whether it tells which volume it is."""
        return SUFFIX.search(name) is not None and self._names.see(name, mtime_ns / 1e9)

    def _waits_from_now(self, name: str, state: FileState, now_s: float) -> Waiting:
        """Begin to wait for a file that is new, or in another state than before."""
        before = self._waiting.get(name)
        self._n_came += before is None
        self._waiting[name] = Waiting(
            state=state,
            since_s=now_s,
            looked_s=before.looked_s if before else now_s,
            came_s=before.came_s if before else now_s,
            nth=before.nth if before else self._n_came,
            series=before.series if before else None,
        )
        return self._waiting[name]

    def again(self, name: str) -> None:
        """Report a file again at the next poll."""
        self._runs.pop(name, None)
        if self._done.pop(name, None):
            self._touched.append(name)

    def _changed(self, now_s: float) -> list[tuple[str, FileState]]:
        """Return unfinished regular files and their states, sorted by time of modification."""
        is_settling = any(waiting.read_s is None for waiting in self._waiting.values())
        is_urgent = is_settling or bool(self._touched)
        names = dict.fromkeys(self._waiting)
        if self._backlog:  # its numbers say where a series begins, so what came later is looked at later
            names |= dict.fromkeys([] if is_settling else self._next_of_backlog())
        else:
            while self._touched:
                names[self._touched.popleft()] = None
            names |= dict.fromkeys(self._turn())
            if not is_urgent or now_s - self._listed_s >= LISTED_AT_LEAST_S:
                self._listed_s = now_s
                names |= dict.fromkeys(self.tree.new(now_s, self._done))
        found, to_see = [], list(names)
        while to_see:
            name = to_see.pop()
            seen = self.tree.seen(name)
            if seen and stat.S_ISDIR(seen.st_mode):
                to_see += self.tree.add(name, now_s, self._done)
            elif seen and self._done.get(name) != _file_state(seen) and self._is_to_be_read(name, seen):
                found.append((name, _file_state(seen)))
                continue
            self._waiting.pop(name, None)
        return sorted(found, key=lambda each: (each[1][1], _counted(each[0])))

    def _turn(self) -> Iterator[str]:
        """Yield the finished files that are checked for changes in this poll; thousands would take long."""
        n_newest = LOOKED_AT_AGAIN // 10
        yield from list(islice(reversed(self._done), n_newest))
        for _ in range(LOOKED_AT_AGAIN - n_newest):
            if (name := next(self._turns, None)) is None:
                self._turns = iter(list(self._done))
                return
            yield name

    def _of_an_open_run(self, longest_s: float) -> list[str]:
        oldest_ns = max((mtime_ns for _, mtime_ns in self._before.values()), default=0) - longest_s * 1e9
        recent = [name for name, (_, mtime_ns) in self._before.items() if mtime_ns >= oldest_ns]
        return sorted(recent, key=lambda name: (self._before[name][1], name))

    def _next_of_backlog(self) -> list[str]:
        """Take up some files that existed before."""
        names = self._backlog[:BACKLOG_AT_ONCE]
        del self._backlog[:BACKLOG_AT_ONCE]
        for name in names:
            if self._done.get(name) == self._before[name]:
                del self._done[name]
        return names

    def _is_to_be_read(self, name: str, seen: os.stat_result) -> bool:
        if stat.S_ISLNK(seen.st_mode):
            self._ignore(name, _file_state(seen), "it is a link, and links are not followed")
        elif not stat.S_ISREG(seen.st_mode) or name.endswith(DONE):
            self._done[name] = _file_state(seen)
        elif name.lower().endswith(UNFINISHED):
            self._done[name] = _file_state(seen)
            self._say_once(
                suffix(name), "%r and others like it are ignored until they get their final names", name
            )
        else:
            return True
        return False

    def _read(self, name: str, waiting: Waiting, now_s: float) -> Iterator[Found]:
        """Yield what a file holds, if it is whole; otherwise it keeps waiting, or is given up."""
        quiet_s, begun_s = waiting.quiet_s(now_s), time.perf_counter()
        gives_up = quiet_s >= self._patience_s
        n_held = 0
        try:
            for holds in self._held(name, waiting, now_s, quiet_s=quiet_s):
                n_held += 1
                yield Found(
                    name=name,
                    holds=holds,
                    whole_s=waiting.since_s,
                    was_there_before=self._before.get(name) == waiting.state,
                )
        except TooShortError:
            if not gives_up:
                return
        except (NotWholeError, OSError) as error:
            waiting.is_unnamed = isinstance(error, UnnamedError)
            if not n_held:  # otherwise it is also the time that the caller took
                waiting.cost_s = time.perf_counter() - begun_s
            if gives_up:
                self._give_up(name, waiting.state, error)
            return
        except WireError as error:
            self._ignore(name, waiting.state, str(error))
            return
        self._finish(name, waiting.state)
        if not n_held:
            self._settle_header_or_foreign(name)

    def _held(
        self, name: str, waiting: Waiting, now_s: float, *, quiet_s: float
    ) -> Iterator[VolumeFile | SliceFile]:
        """Yield what a file holds.

        :raises NotWholeError: when it is incomplete
        :raises WireError: when it is damaged or not supported
        """
        with open_within(self.folder, name) as file:
            if run_file.is_run(file.read(_HEAD_BYTES)):
                file.seek(0)
                run = self._runs.setdefault(name, RunFile())
                for volume in run.volumes(file, name, is_quiet=quiet_s >= HOLLOW_S):
                    self._remark(volume)
                    yield volume
                return
            file.seek(0)
            data = all_bytes(file)
        held = parse(
            name,
            data,
            names=self._names,
            beside=partial(self._beside, name),
            is_last_chance=quiet_s >= self._patience_s,
        )
        if not held:
            return
        waiting.series = series = held[0].series
        if not self._whole.has_all(name, data, held[0], waiting, now_s):
            raise NotWholeError("expected data where there are zeros")
        if self._is_held_up(name, waiting, series, now_s):
            raise NotWholeError("expected the files before it")
        self._begun.add(series)
        self._whole.take(name, series, waiting.crc, now_s)
        for holds in held:
            if isinstance(holds, VolumeFile):
                self._remark(holds)
            yield holds

    def _is_held_up(self, name: str, waiting: Waiting, series: str, now_s: float) -> bool:
        """Whether a file like it that came earlier is to be taken first."""
        has_begun = series in self._begun
        earlier = takewhile(lambda each: each[1].nth < waiting.nth, self._waiting.items())  # in order
        return any(
            each.holds_up(series, has_begun=has_begun)
            and now_s - each.came_s < self._patience_s
            and _kind(other) == _kind(name)
            and other not in self._runs
            for other, each in earlier
        )

    def _is_run(self, name: str) -> bool:
        try:
            with open_within(self.folder, name) as file:
                return run_file.is_run(file.read(_HEAD_BYTES))
        except (OSError, WireError):
            return False

    def _beside(self, name: str, other: str, n_most: int) -> bytes | None:
        """Return the beginning of the file with the same name but another suffix, if there is one."""
        for each in names_beside(name, other):
            try:
                with open_within(self.folder, each) as file:
                    return file.read(n_most)
            except FileNotFoundError:
                continue
        return None

    def _settle_header_or_foreign(self, name: str) -> None:
        """Take up the voxels that waited in vain for this header; log one line per suffix of other files."""
        if voxels := describes(name):
            for each in self._given_up.intersection(names_beside(name, voxels)):
                self.again(each)
        else:
            kind = _VARIES.sub("", Path(name).suffix or name)
            self._say_once(kind, "%r and others like it are ignored: none of the formats that are read", name)

    def _give_up(self, name: str, state: FileState, error: NotWholeError | OSError) -> None:
        self._given_up.add(name)
        is_cut = isinstance(error, NotWholeError)
        why = "incomplete and no longer growing" if is_cut else "it cannot be read"
        _log.warning("%r is ignored: %s; its volume is missing: %s", name, why, error)
        self._finish(name, state)

    def _ignore(self, name: str, state: FileState, why: str) -> None:
        kind = _VARIES.sub("", why)
        self._say_once(kind, "%r and others like it are ignored: %s", name, why, level=logging.WARNING)
        self._finish(name, state)

    def _finish(self, name: str, state: FileState) -> None:
        self._done.pop(name, None)  # so that it is the last again
        self._done[name] = state
        self._waiting.pop(name, None)

    def _remark(self, volume: VolumeFile) -> None:
        if volume.remark:
            self._say_once(
                f"{volume.series} {volume.remark}",
                "series %s: %s",
                volume.series,
                volume.remark,
                level=logging.WARNING,
            )


def _kind(name: str) -> str:
    """Return what files of one series have in common."""
    return f"{name.rpartition('/')[0]}/{suffix(name)}"


def _counted(name: str) -> list[tuple[int, str]]:
    """Return what sorts names by their numbers: 2 comes before 10."""
    return [(int(text[:300]), "") if text.isdecimal() else (-1, text) for text in _NUMBERS.split(name)]


def _file_state(seen: os.stat_result) -> FileState:
    return seen.st_size, seen.st_mtime_ns
