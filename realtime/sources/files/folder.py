"""Receives volumes from files that a scanner or a converter writes into a folder.

File system events report new files at once. Network shares have none, so the folder is also polled several
times per second.

One series is followed at a time. Files of other series wait until it is complete, or until it has been silent
for some TR while another series began. A series whose files came between those of the followed series ran in
parallel (for example a motion-corrected copy) and is ignored. The newest of the remaining series is followed
next, from its first file on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from realtime import wire
from realtime.sources.files.acquisitions import EchoSeries, Volumes
from realtime.sources.files.folder_events import changes
from realtime.sources.files.followed import FollowedSeries, WaitingSeries
from realtime.sources.files.incoming import Incoming
from realtime.sources.files.numbering import Numbering
from realtime.sources.files.series import Numbered, Series
from realtime.sources.files.volume_file import DTYPE
from realtime.sources.files.waiting import SETTLE_S
from realtime.sources.files.watch import Files, Found
from realtime.sources.run_boundaries import QUIET_TR, Plan, RunOver, Scan

POLL_S = 0.25
GIVE_UP_TR = QUIET_TR - 1
"""An incomplete file is given up when it has not changed for this many TR, before its run ends."""
EVENTS_AGAIN_S = 1.0
"""If file system events fail, they are asked for again after this time."""
BYTES_AT_ONCE = 64 * 2**20
"""Bytes of voxels read in one pass, so that a full folder does not fill the memory."""
_PAUSE_S = 1_800.0
"""A run that a crash left open has no files that are older than the newest by more than this and two runs."""
_REFERENCE = "sbref"
"""In the name of a series that precedes a multiband run: the same slices, acquired one by one, once."""

_log = logging.getLogger(__name__)
logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it logs every event at INFO


class SeriesScanner:
    """Yields the volumes of one series at a time.

    :param files: the images; a subclass sets :attr:`_wake` when some may have come
    :param series: text that the name of a series must contain
    :param first_number: number of a series' first volume; None means to learn it
    :param echo: number of the echo that is followed, ``combine``, or None for the first that comes
    :param unfinished: id of the run that an earlier runtime left open. Existing files of its series are read;
        all other existing files are ignored.
    """

    def __init__(
        self,
        files: Incoming,
        plan: Plan,
        *,
        series: str,
        first_number: int | None,
        echo: int | str | None,
        unfinished: str | None,
    ) -> None:
        self._files = files
        self._plan = plan
        self._volumes: defaultdict[str, Volumes] = defaultdict(Volumes)
        self._series = series
        self._make_series = partial(Series, plan.tr_s, first_number=first_number, echo=echo)
        ours = f"{plan.run_id}_series-"
        is_ours = unfinished is not None and unfinished.startswith(ours)
        self._unfinished = unfinished.removeprefix(ours) if unfinished and is_ours else None
        self._numberings: defaultdict[str, Numbering] = defaultdict(Numbering)
        """What images told that were passed over."""
        self._echo_series = EchoSeries(plan.tr_s, self._unfinished)
        self._followed = self._follow(self._unfinished) if self._unfinished else None
        self._ignored: set[str] = set()
        self._over: set[str] = set()
        """Ignored series that were followed before; cleared once a warning about a late file is logged."""
        self._passed_over: set[tuple[str, str]] = set()
        """Series and parts for which this was told."""
        self._others: dict[str, WaitingSeries] = {}
        """Waiting series in the order in which they began."""
        self._n_waiting = 0
        """Number of files of waiting series so far, which numbers these files in order of arrival."""
        self._wake = asyncio.Event()

    async def scans(self) -> AsyncGenerator[Scan | RunOver, None]:
        """Yield the volumes of the followed series and the ends of runs."""
        while True:
            new = await asyncio.to_thread(self._look)
            for found in new:
                for scan in self._scans(found):
                    yield scan
            if not self._files.is_held_up:
                for scan in self._settled():
                    yield scan
            has_looked = not (new or self._files.is_settling or self._files.is_held_up)
            if self._is_over(time.perf_counter(), has_looked=has_looked):
                self._let_go()
                yield RunOver()
                continue
            if not new:  # otherwise more files may be ready already
                await self._news()

    def _look(self) -> list[Found]:
        new, n_bytes = [], 0
        for found in self._files.look(time.perf_counter()):
            new.append(self._joined(found))
            n_bytes += found.holds.voxels.nbytes
            if n_bytes > BYTES_AT_ONCE:
                break
        return new

    def _joined(self, found: Found) -> Found:
        """Return an image with the series of its acquisition, whose echoes may be stored as several."""
        is_old = found.was_there_before and not self._unfinished
        if is_old or self._series not in found.holds.series_name:
            return found
        return replace(found, holds=self._echo_series.joined(found.holds, found.whole_s))

    async def _news(self) -> None:
        patience_s = SETTLE_S if self._files.is_settling else POLL_S
        try:
            async with asyncio.timeout(patience_s):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _follow(self, series: str, **known: Any) -> FollowedSeries:
        made = self._make_series(numbering=self._numberings[series], **known)
        return FollowedSeries(series, self._plan, made)

    def _scans(self, found: Found) -> list[Scan]:
        """Return the volumes that a file of the followed series contains or completes."""
        if not self._is_wanted(found):
            return []
        series = found.holds.series
        if found.holds.acquired.part != "magnitude":
            self._pass_over(found)
            return []
        self._volumes[series].add(found.holds, found.whole_s)
        if self._followed is None:
            _log.info("following series %s (%s)", series, found.holds.series_name)
            self._followed = self._follow(series)
        if series != self._followed.series:
            self._wait(found, self._followed)
            return []
        scans = [self._scan(each, series) for each in self._followed.add(found)]
        if refusal := self._followed.volumes.refusal:
            self._ignore(series, refusal)
            self._followed.is_refused = True
        return scans

    def _settled(self) -> list[Scan]:
        """Return the volumes of the followed series that need not wait any longer."""
        followed = self._followed
        return [self._scan(each, followed.series) for each in followed.settle()] if followed else []

    def _scan(self, numbered: Numbered, series: str) -> Scan:
        volume = numbered.volume
        x, y, z = volume.voxels.shape
        return Scan(
            index=numbered.index,
            shape=(x, y, z),
            affine=volume.affine,
            dtype=DTYPE,
            payload=memoryview(volume.voxels.tobytes()),
            received_s=numbered.whole_s,
            answer=partial(self._answer, numbered.index),
            tr_s=volume.tr_s,
            series=series,
        )

    def _pass_over(self, found: Found) -> None:
        """Tell once that phase images are not decoded, and learn how images of their series are counted."""
        series, part = found.holds.series, found.holds.acquired.part
        if (series, part) not in self._passed_over:
            self._passed_over.add((series, part))
            _log.warning(
                "%r and other %s images of series %s (%s) are passed over: magnitude is decoded. Turn them "
                "off at the console if nobody needs them",
                found.name,
                part,
                series,
                found.holds.series_name,
            )
        self._numberings[series].learn(found.holds)

    def _is_wanted(self, found: Found) -> bool:
        series, name = found.holds.series, found.holds.series_name
        if found.was_there_before and series != self._unfinished:
            return False
        if series not in self._ignored and self._series not in name:
            self._ignore(series, f"its name, {name!r}, does not contain {self._series!r}")
        if (
            series not in self._ignored
            and _REFERENCE in name.lower()
            and _REFERENCE not in self._series.lower()
        ):
            self._ignore(series, f"{name!r} is a reference of one volume; --series {name} follows it")
        if series in self._over:
            self._over.discard(series)  # warn once
            _log.warning(
                "%r and further files of its series are ignored, because its run is over: give the files of "
                "another run other names or another series",
                found.name,
            )
        return series not in self._ignored

    def _wait(self, found: Found, followed: FollowedSeries) -> None:
        series = found.holds.series
        if series not in self._others:
            _log.info("series %s (%s) waits", series, found.holds.series_name)
        self._n_waiting += 1
        other = self._others.setdefault(
            series, WaitingSeries(began_after=followed.n_files, first=self._n_waiting)
        )
        other.names.append(found.name)
        other.last = self._n_waiting
        before = self._volumes[followed.series]
        if not followed.is_over and self._volumes[series].follow(before, self._plan.tr_s):
            followed.is_over = True
            _log.warning(
                "series %s has one volume and is over, because series %s (%s) came after it. If these are "
                "volumes of one run, let the scanner export mosaics or enhanced DICOM",
                followed.series,
                series,
                found.holds.series_name,
            )

    async def _answer(self, index: int, message: wire.Ack | wire.Refused) -> None:
        followed = self._followed
        if followed is None:
            return
        if isinstance(message, wire.Ack):
            followed.came.add(index)
        elif message.index is None:  # the run is refused, not only this volume
            self._ignore(followed.series, f"its run was refused: {message.message}")
            followed.is_refused = True

    def _is_over(self, now_s: float, *, has_looked: bool) -> bool:
        """Whether the run of the followed series has ended.

        :param has_looked: whether no file waits to be read; otherwise the series may only seem silent
        """
        followed = self._followed
        if followed is None:
            return False
        if followed.is_refused or followed.is_over or followed.is_complete:
            return True
        if not (has_looked and followed.is_quiet(now_s)):
            return False
        if not (followed.has_last or self._successor):
            followed.tell_what_is_awaited()
        return followed.has_last or self._successor is not None or followed.is_played

    @property
    def _successor(self) -> str | None:
        """The newest series that began after the last file of the followed series and of earlier ones.

        A series whose files came between those of an earlier one runs in parallel to it.
        """
        followed, found = self._followed, None
        for series, other in self._others.items():
            is_later = followed is None or followed.is_refused or other.began_after == followed.n_files
            if is_later and (found is None or self._others[found].last < other.first):
                found = series
        return found

    def _let_go(self) -> None:
        """Stop following the series, and have the files of its successor reported again."""
        successor = self._successor
        if self._followed and not self._followed.is_refused:
            self._ignore(self._followed.series, "its run is over")
            self._over.add(self._followed.series)
        for series, other in self._others.items():
            if series != successor:
                self._ignore(series, "it ran in parallel to another series, or was aborted")
                continue
            for name in other.names:
                self._files.again(name)
        self._followed = None
        self._others.clear()

    def _ignore(self, series: str, why: str) -> None:
        _log.info("series %s is ignored from now on: %s", series, why)
        self._ignored.add(series)


class FolderScanner(SeriesScanner):
    """Watches a folder and yields the volumes of one series at a time.

    :param options: those of :class:`SeriesScanner`
    :raises ServeError: when the folder does not exist
    """

    def __init__(self, folder: Path, plan: Plan, **options: Any) -> None:
        longest_s = 2 * plan.n_volumes * plan.tr_s + _PAUSE_S
        self._watched = Files(folder, GIVE_UP_TR * plan.tr_s, longest_s)
        super().__init__(self._watched, plan, **options)
        if self._unfinished is None:
            self._watched.pass_over_those_before()

    async def scans(self) -> AsyncGenerator[Scan | RunOver, None]:
        """As :meth:`SeriesScanner.scans`; events tell of new files before looking would."""
        watching = asyncio.create_task(self._watch())
        try:
            async with aclosing(super().scans()) as scans:
                async for scan in scans:
                    yield scan
        finally:
            watching.cancel()

    async def start(self) -> str:
        """Return the watched folder as an address."""
        _log.info("watching %s; it contains %d files", self._watched.folder, self._watched.n_before)
        return f"folder:{self._watched.folder}"

    async def stop(self) -> None:
        """Do nothing; ``scans`` stops watching when it is closed."""

    async def _watch(self) -> None:
        said = ""
        while True:
            try:
                async for paths in changes(self._watched.tree):
                    self._watched.touch(paths)
                    self._wake.set()
            except FileNotFoundError:
                pass  # a folder went away just when it was to be watched
            except Exception as error:  # polling still finds files, only later
                if str(error) != said:
                    _log.warning(
                        "no file system events of %s: %s; polling every %.2f s, and trying again",
                        self._watched.folder,
                        error,
                        POLL_S,
                    )
                said = str(error)
            await asyncio.sleep(EVENTS_AGAIN_S)
