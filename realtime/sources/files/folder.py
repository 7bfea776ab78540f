"""Volumes from the files that a scanner, or what converts for it, writes into a folder.

Events of the file system tell of new files at once; network shares have none, so the folder is also looked
into several times a second.

One series is followed at a time, and files of others wait until it is complete, or has been quiet for some TR
while another began. A series of which files came between those of the followed one ran beside it (a
motion-corrected copy, say) and is passed over; the newest of the others is followed from its first file on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import watchfiles

from realtime import wire
from realtime.errors import WireError
from realtime.sources.files.slices import Slices
from realtime.sources.files.volume_file import DTYPE, VolumeFile
from realtime.sources.files.watch import SETTLE_S, Files, Found
from realtime.sources.run_boundaries import QUIET_TR, Plan, RunOver, Scan

POLL_S = 0.25
GIVE_UP_TR = QUIET_TR - 1
"""A file that is not whole is given up when it has not changed for this many TR, before its run is."""
BYTES_AT_ONCE = 64 * 2**20
"""Files beyond are left for the next look, so that a full folder does not fill the memory."""
_EVENTS_TOGETHER_MS = 20

_log = logging.getLogger(__name__)
logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells of every event


class FolderScanner:
    """A folder that is watched.

    :param grid_shape: of the volumes that are wanted; it tells how many single slices make one.
    :param series: only series whose name contains this.
    :param first_number: that of a series' first volume.
    :param unfinished: the id of the run that an earlier runtime left open: its files are taken although they
        are there before; all others that are there are passed over.
    :raises ServeError: where there is no such folder.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        *,
        grid_shape: tuple[int, int, int],
        series: str,
        first_number: int,
        unfinished: str | None,
    ) -> None:
        self._files = Files(folder, GIVE_UP_TR * plan.tr_s)
        self._plan = plan
        self._grid_shape = grid_shape
        self._series = series
        self._first_number = first_number
        ours = f"{plan.run_id}_series-"
        is_ours = unfinished is not None and unfinished.startswith(ours)
        self._unfinished = unfinished.removeprefix(ours) if unfinished and is_ours else None
        if self._unfinished is None:
            self._files.pass_over_those_before()
        self._followed = _Followed(self._unfinished, plan, grid_shape) if self._unfinished else None
        self._passed: set[str] = set()
        self._over: set[str] = set()
        """Of them those that were followed, until a file comes of them after all."""
        self._others: dict[str, _Other] = {}
        """By series, in the order in which they began."""
        self._n_waiting = 0
        """Files that came of others so far: their order is that of the numbers they get."""
        self._wake = asyncio.Event()

    async def start(self) -> str:
        """Nothing listens; returns what is watched."""
        _log.info("watching %s; %d files are there already", self._files.folder, self._files.n_before)
        return f"folder:{self._files.folder}"

    async def scans(self) -> AsyncIterator[Scan | RunOver]:
        """The volumes of the followed series, and the end of one that was broken off."""
        watching = asyncio.create_task(self._watch())
        try:
            while True:
                new = await asyncio.to_thread(self._look)
                for found in new:
                    if scan := self._scan(found):
                        yield scan
                has_looked = not (new or self._files.is_settling)
                if self._is_over(time.perf_counter(), has_looked=has_looked):
                    self._let_go()
                    yield RunOver()
                    continue
                if not new:  # else there may be more already
                    await self._news()
        finally:
            watching.cancel()

    async def stop(self) -> None:
        """Nothing listens."""

    def _look(self) -> list[Found]:
        new, n_bytes = [], 0
        for found in self._files.look(time.perf_counter()):
            new.append(found)
            n_bytes += found.holds.voxels.nbytes
            if n_bytes > BYTES_AT_ONCE:
                break
        return new

    async def _watch(self) -> None:
        try:
            async for _ in watchfiles.awatch(
                self._files.folder, watch_filter=None, step=_EVENTS_TOGETHER_MS, recursive=False
            ):
                self._wake.set()
        except Exception as error:  # it is only quicker with them
            _log.warning("no events of %s: %s; looking every %.2f s", self._files.folder, error, POLL_S)

    async def _news(self) -> None:
        patience_s = SETTLE_S if self._files.is_settling else POLL_S
        try:
            await asyncio.wait_for(self._wake.wait(), patience_s)
        except TimeoutError:
            return
        self._wake.clear()

    def _scan(self, found: Found) -> Scan | None:
        """The volume that a file of the followed series holds or completes."""
        if not self._is_wanted(found):
            return None
        series = found.holds.series
        if self._followed is None:
            _log.info("following series %s (%s)", series, found.holds.series_name)
            self._followed = _Followed(series, self._plan, self._grid_shape)
        if series != self._followed.series:
            self._wait(found, self._followed)
            return None
        try:
            volume = self._followed.volume(found, not found.was_there_before)
        except WireError as error:
            _log.warning("%r is passed over: %s", found.name, error)
            return None
        index = volume.number - self._first_number if volume else 0
        if volume is None or index < 0:
            if volume:
                _log.warning("%r is passed over: its number is below --first-number", found.name)
            return None
        x, y, z = volume.voxels.shape
        return Scan(
            index=index,
            shape=(x, y, z),
            affine=volume.affine,
            dtype=DTYPE,
            payload=memoryview(volume.voxels.tobytes()),
            received_s=found.whole_s,
            answer=partial(self._answer, index),
            tr_s=volume.tr_s,
            series=series,
        )

    def _is_wanted(self, found: Found) -> bool:
        series, name = found.holds.series, found.holds.series_name
        if found.was_there_before and series != self._unfinished:
            return False
        if series not in self._passed and self._series not in name:
            self._pass(series, f"its name, {name!r}, has no {self._series!r} in it")
        if series in self._over:
            self._over.discard(series)  # said once
            _log.warning(
                "%r is passed over, and others of its series, whose run is over: give another run's files "
                "other names, or a series of their own",
                found.name,
            )
        return series not in self._passed

    def _wait(self, found: Found, followed: _Followed) -> None:
        series = found.holds.series
        if series not in self._others:
            _log.info("series %s (%s) waits", series, found.holds.series_name)
        self._n_waiting += 1
        other = self._others.setdefault(series, _Other(began_after=followed.n_files, first=self._n_waiting))
        other.names.append(found.name)
        other.last = self._n_waiting

    async def _answer(self, index: int, message: wire.Ack | wire.Refused) -> None:
        followed = self._followed
        if followed is None:
            return
        if isinstance(message, wire.Ack):
            followed.came.add(index)
        elif message.index is None:  # not of a volume, but of the whole run
            self._pass(followed.series, f"its run was refused: {message.message}")
            followed.is_refused = True

    def _is_over(self, now_s: float, *, has_looked: bool) -> bool:
        """Whether the followed series' run has ended.

        :param has_looked: whether no file waits to be read; else it only seems quiet, after a full disk, say.
        """
        followed = self._followed
        if followed is None:
            return False
        ends = followed.has_last or self._successor is not None
        return (
            followed.is_refused or followed.is_complete or (ends and has_looked and followed.is_quiet(now_s))
        )

    @property
    def _successor(self) -> str | None:
        """The newest series that began when nothing more came of the followed one, nor of others before it.

        One of which files came between those of an earlier one runs beside that.
        """
        followed, found = self._followed, None
        for series, other in self._others.items():
            is_later = followed is None or followed.is_refused or other.began_after == followed.n_files
            if is_later and (found is None or self._others[found].last < other.first):
                found = series
        return found

    def _let_go(self) -> None:
        """The followed series is over: the files of its successor are told again."""
        successor = self._successor
        if self._followed and not self._followed.is_refused:
            self._pass(self._followed.series, "its run is over")
            self._over.add(self._followed.series)
        for series, other in self._others.items():
            if series != successor:
                self._pass(series, "it ran beside another, or was broken off")
                continue
            for name in other.names:
                self._files.again(name)
        self._followed = None
        self._others.clear()

    def _pass(self, series: str, why: str) -> None:
        _log.info("series %s is passed over from here on: %s", series, why)
        self._passed.add(series)


class _Followed:
    """The series whose volumes make the run."""

    def __init__(self, series: str, plan: Plan, grid_shape: tuple[int, int, int]) -> None:
        self.series = series
        self.n_files = 0
        """Without those that were there before; one that is read again counts once."""
        self.is_refused = False
        self.came: set[int] = set()
        self._heard_s = time.perf_counter()
        self._plan = plan
        self._slices = Slices(grid_shape)
        self._names: set[str] = set()
        """Of the files that were told."""

    def volume(self, found: Found, is_new: bool) -> VolumeFile | None:
        """What a file holds, or what its slice completes. :raises WireError: where slices make no volume."""
        self._heard_s = time.perf_counter()
        holds = found.holds
        self.n_files += is_new and found.name not in self._names
        self._names.add(found.name)
        return holds if isinstance(holds, VolumeFile) else self._slices.add(holds)

    @property
    def is_complete(self) -> bool:
        return len(self.came) == self._plan.n_volumes

    @property
    def has_last(self) -> bool:
        return self._plan.n_volumes - 1 in self.came

    def is_quiet(self, now_s: float) -> bool:
        return now_s - self._heard_s > QUIET_TR * self._plan.tr_s


@dataclass(kw_only=True)
class _Other:
    """A series that waits."""

    began_after: int
    """How many files of the followed series there were."""
    first: int
    """The number of its first file among those of all others, and of its last."""
    last: int = 0
    names: list[str] = field(default_factory=list)
