"""Tells when a file that has its full size has all of its bytes."""

from __future__ import annotations

import logging
import zlib

from realtime.sources.files.formats import GZIP_MARK, stem
from realtime.sources.files.said_once import SaidOnce
from realtime.sources.files.slices import SliceFile
from realtime.sources.files.tree import Tree
from realtime.sources.files.volume_file import VolumeFile
from realtime.sources.files.waiting import Waiting
from realtime.sources.files.zeros import UsualZeros

HOLLOW_S = 3.0
"""A file with zeros at unusual places is taken if it has not changed for this time."""
_SHARE_OF_PATIENCE = 0.9
"""Of the time after which a file is given up, if that is shorter."""
LATE_S = 30.0
"""A file that changes so soon after it was read was not whole; later, its name is used again."""
DONE = ".done"

_log = logging.getLogger(__name__)


class WholeFiles:
    """What is known of the files of a folder that were taken for whole."""

    def __init__(self, tree: Tree, patience_s: float, say_once: SaidOnce) -> None:
        self._tree = tree
        self._hollow_s = min(HOLLOW_S, _SHARE_OF_PATIENCE * patience_s)
        self._say_once = say_once
        self._usual = UsualZeros()
        self._taken: dict[str, tuple[int, float]] = {}
        """Checksums of the files that were taken, and when."""

    def has_all(
        self, name: str, data: bytes, holds: VolumeFile | SliceFile, waiting: Waiting, now_s: float
    ) -> bool:
        """Whether no bytes are to come in place of zeros."""
        crc = zlib.crc32(data)
        if crc != waiting.crc:
            waiting.crc, waiting.same_s = crc, now_s
        if data.startswith(GZIP_MARK):
            return True  # it has a checksum
        n_unused = holds.n_unused_bytes if isinstance(holds, VolumeFile) else 0
        used, series = data[: len(data) - n_unused], holds.series
        if self._usual.are_unusual(series, used) and not self._is_done(name):
            if now_s - waiting.same_s < self._hollow_s:
                return False
            if self._usual.knows(series):
                self._say_once(
                    f"hollow {series}",
                    "%r has zeros where volumes before it have data, and no bytes came for %.1f s: it is "
                    "taken as it is, and so are others like it",
                    name,
                    now_s - waiting.same_s,
                    level=logging.WARNING,
                )
        if self._usual.learn(series, used) and name not in self._taken:
            self._say_once(
                f"was hollow {series}",
                "%r has data where volumes before it have zeros: these were taken as they were, and may not "
                "have been whole",
                name,
                level=logging.WARNING,
            )
        return True

    def take(self, name: str, series: str, crc: int | None, now_s: float) -> None:
        """Take a file, and tell if bytes came after it had been taken before."""
        crc_before, taken_s = self._taken.get(name, (crc, now_s))
        self._taken[name] = crc or 0, now_s
        if crc != crc_before and now_s - taken_s < LATE_S:
            self._usual.forget(series)
            _log.warning(
                "%r was changed %.1f s after it was read: a run that has its volume keeps what was read "
                "first, which may not have been whole. Have files copied under another name, then renamed",
                name,
                now_s - taken_s,
            )

    def _is_done(self, name: str) -> bool:
        """Whether a file beside it says that it is whole."""
        return any(self._tree.seen(each) for each in (f"{name}{DONE}", stem(name) + DONE))
