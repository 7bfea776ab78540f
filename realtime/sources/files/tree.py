"""Lists a folder and its subfolders again and again, at little cost.

A folder is listed again when its time of modification has changed, and now and then besides, because not
every file system keeps that time. A folder that takes long to list is listed less often. Links are never
followed.
"""

from __future__ import annotations

import heapq
import logging
import os
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from realtime.errors import ServeError

DEEPEST = 12
"""Folders below this depth are not looked into."""
MOST_FOLDERS = 20_000
"""Folders beyond this number are not looked into."""
ASKED_AT_ONCE = 200
"""Each poll asks so many folders whether they have changed: those that changed last, and the rest in turn."""
_STILL_CHANGES_S = 2.0
"""For so long after a change a folder is listed again at each poll: times of modification may be coarse."""
_UNPROMPTED_S, _UNPROMPTED_AT_ONCE = 5.0, 4
_IDLE_PARTS = 3
"""After a folder was listed, it is left alone for so many times what that took."""

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Folder:
    mtime_ns: int = -1
    listed_s: float = float("-inf")
    cost_s: float = 0.0
    changed_s: float = float("-inf")
    """When something new was in it."""


class Tree:
    """The files in a folder and its subfolders, by their paths within it, with slashes.

    :raises ServeError: when the folder does not exist
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.folder = folder.resolve(strict=True)
            os.scandir(self.folder).close()
        except OSError as error:
            raise ServeError(f"expected a folder to watch, got {folder}: {error.strerror}") from error
        self._folders: dict[str, _Folder] = {"": _Folder()}
        self._turns: Iterator[str] = iter(())
        self._is_away = self._is_too_much = False

    def path(self, name: str) -> str:
        """Return a path for the system."""
        return os.path.join(self.folder, *name.split("/")) if name else str(self.folder)

    def name(self, path: str) -> str | None:
        """Return the path within the folder of a path of the system, unless it is hidden."""
        try:
            name = Path(path).relative_to(self.folder).as_posix()
        except ValueError:
            return None
        return None if any(part.startswith(".") for part in name.split("/")) else name

    def seen(self, name: str) -> os.stat_result | None:
        """Return what the system says of a file; None if it is gone, or its folder is away."""
        try:
            return os.stat(self.path(name), follow_symlinks=False)
        except OSError:
            return None

    def all(self) -> list[str]:
        """Return what is there at first."""
        return self._listed("", float("-inf"), ())

    def new(self, now_s: float, known: Container[str]) -> list[str]:
        """Return entries that are not known, links among them, in all folders that may have changed."""
        found: list[str] = []
        n_unprompted = 0
        for name in self._asked():
            folder = self._folders[name]
            if now_s - folder.listed_s < _IDLE_PARTS * folder.cost_s:
                continue
            try:
                mtime_ns = os.stat(self.path(name), follow_symlinks=False).st_mtime_ns
            except OSError as error:
                self._lose(name, error)
                continue
            if not name:
                self._is_away = False
            if mtime_ns != folder.mtime_ns:
                folder.changed_s = now_s
            is_recent = abs(time.time_ns() - mtime_ns) < _STILL_CHANGES_S * 1e9
            is_prompted = is_recent or now_s - folder.changed_s < _STILL_CHANGES_S
            is_old = now_s - folder.listed_s > max(_UNPROMPTED_S, 100 * folder.cost_s)
            if is_prompted or (is_old and n_unprompted < _UNPROMPTED_AT_ONCE):
                n_unprompted += not is_prompted
                found += self._listed(name, now_s, known)
        return found

    def watched(self, n_most: int) -> list[str]:
        """Return the folders whose events matter most: those that changed last."""
        return sorted(self.path(name) for name in {"", *self._newest(n_most)})

    def add(self, name: str, now_s: float, known: Container[str]) -> list[str]:
        """Look into a folder that was not known, and return its entries and those of its subfolders."""
        if name in self._folders:
            return []
        if len(self._folders) >= MOST_FOLDERS or name.count("/") >= DEEPEST:
            if not self._is_too_much:
                self._is_too_much = True
                _log.warning(
                    "%r and further folders are not looked into: there are more than %d folders, or they are "
                    "more than %d deep; watch the folder that the scanner writes into",
                    name,
                    MOST_FOLDERS,
                    DEEPEST,
                )
            return []
        self._folders[name] = _Folder(changed_s=now_s)
        return self._listed(name, now_s, known)

    def _listed(self, name: str, now_s: float, known: Container[str]) -> list[str]:
        folder, begun_s = self._folders[name], time.perf_counter()
        prefix = f"{name}/" if name else ""
        found, inner = [], []
        try:
            folder.mtime_ns = os.stat(self.path(name), follow_symlinks=False).st_mtime_ns
            with os.scandir(self.path(name)) as entries:
                for entry in entries:
                    path = prefix + entry.name
                    if path in known or entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(path)
                    else:
                        found.append(path)
        except OSError as error:
            self._lose(name, error)
        folder.listed_s, folder.cost_s = now_s, time.perf_counter() - begun_s
        if found:
            folder.changed_s = now_s
        for path in inner:
            found += self.add(path, now_s, known)
        return found

    def _asked(self) -> list[str]:
        if len(self._folders) <= ASKED_AT_ONCE:
            return list(self._folders)
        asked = dict.fromkeys(["", *self._newest(ASKED_AT_ONCE // 4)])
        for _ in range(ASKED_AT_ONCE - len(asked)):
            name = next(self._turns, None)
            if name is None:
                self._turns = iter(list(self._folders))
            elif name in self._folders:
                asked[name] = None
        return list(asked)

    def _newest(self, n_most: int) -> list[str]:
        """Return the folders that changed last."""
        folders = self._folders.copy()  # a poll in another thread may add some
        return heapq.nlargest(
            n_most, folders, key=lambda name: (folders[name].changed_s, folders[name].mtime_ns)
        )

    def _lose(self, name: str, error: OSError) -> None:
        """Forget a folder that is gone; the watched one itself may come back, for example a network share."""
        if name:
            self._folders.pop(name, None)
            return
        if not self._is_away:
            _log.warning("cannot list %s: %s; trying again", self.folder, error.strerror)
        self._is_away = True
