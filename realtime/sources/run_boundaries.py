"""Runs of scanners that announce none: starts and ends are made from volumes and the operator's plan.

    what comes                                          what the pipeline gets
    the first volume                                    RunStart, Volume
    one of another series, or volume 0 with new voxels  RunEnd, RunStart, Volume
    the last planned volume, all others have come       Volume, RunEnd
    nothing for some TR, the last planned has come      RunEnd
    the scanner's end of the run                        RunEnd
    one beyond the plan                                 nothing: the scanner is told no

Every run has the id of the plan, with that of its series where the scanner has series. A run that comes again
is recorded as its next take, and one that a restart of the runtime left open goes on. A start, a volume or an
end for which the pipeline's disk has no room is made again every TR until there is; the volume is answered
then, and what the scanner sends meanwhile waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from realtime import wire
from realtime.sources import Received

QUIET_TR = 5
"""A run whose last volume has come waits this many TR for those that are missing."""
TROUBLE = "runtime"
"""Code with which the pipeline refuses what it would take another time: its disk is full, say."""
_OUT_OF_ORDER = 2
"""A run's volume 0 may come after this one of it, and is still its own."""
_NOTHING = memoryview(b"")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an operator says of the runs to come."""

    subject: int
    run_id: str
    n_volumes: int
    tr_s: float
    """Taken where the scanner does not tell it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A volume [x, y, z] whose axes run to the right, to the front and up: C order, little endian."""

    index: int
    shape: tuple[int, int, int]
    affine: wire.Affine
    dtype: str
    payload: memoryview
    received_s: float
    """When it was whole, by ``time.perf_counter``."""
    answer: Callable[[wire.Ack | wire.Refused], Awaitable[None]]
    """Tells the scanner, in its own words, that the volume is in the journal or why it is not taken."""
    tr_s: float | None = None
    series: str = ""
    """Letters and digits; the same for all volumes of a run, where the scanner tells."""


@dataclass(frozen=True, slots=True)
class RunOver:
    """The scanner says that its run is over."""


class Scanner(Protocol):
    """One that sends volumes and perhaps the end of runs, in whatever protocol."""

    async def start(self) -> str:
        """Begin to listen; returns where. :raises ServeError: when that is not possible or not allowed."""
        ...

    def scans(self) -> AsyncIterator[Scan | RunOver]:
        """All that comes. What cannot be taken is answered and told here."""
        ...

    async def stop(self) -> None:
        """Stop listening."""
        ...


class Announced:
    """A :class:`realtime.sources.Source` over such a scanner."""

    def __init__(self, scanner: Scanner, plan: Plan) -> None:
        self._scanner = scanner
        self._plan = plan
        self._scans = scanner.scans()
        self._news: asyncio.Task[Scan | RunOver] | None = None
        self._messages = self._announce()
        self._over: set[str] = set()
        """Series whose run has ended: what comes of them later begins no other."""

    async def start(self) -> str:
        """Begin to listen; returns where. :raises ServeError: when that is not possible or not allowed."""
        return await self._scanner.start()

    async def receive(self) -> Received:
        """The next message. What it leads to must be known, by its reply, before the next is asked for."""
        return await anext(self._messages)

    async def stop(self) -> None:
        """Stop listening."""
        if self._news:
            self._news.cancel()
            await asyncio.wait([self._news])
        await self._scanner.stop()

    async def _announce(self) -> AsyncIterator[Received]:
        run: _Run | None = None
        while True:
            news = await self._next(run)
            try:
                start = self._start(news) if isinstance(news, Scan) else None
                if run and (isinstance(news, RunOver) or run.is_followed_by(news)):
                    async for end in self._end(run):
                        yield end
                    run = None
                if start is None or isinstance(news, RunOver):
                    continue
                while run is None:
                    reply = _Reply()
                    yield Received(
                        message=start, payload=_NOTHING, received_s=news.received_s, reply=reply.take
                    )
                    if reply.is_trouble:
                        await asyncio.sleep(start.tr_s)  # asking at once would leave nobody else a turn
                        continue
                    if reply.is_of_another_plan:
                        async for end in _ends(start, "aborted"):
                            yield end
                        continue
                    run = _Run(start, news.series, reply.accepted)
                    if run.was_left_open_before(news):
                        async for end in self._end(run):
                            yield end
                        run = None
                yield run.volume(news, reply := _Reply())
                while reply.is_trouble:
                    await asyncio.sleep(start.tr_s)
                    yield run.volume(news, reply := _Reply())
            except _RefusedError as error:
                if isinstance(news, Scan):
                    await news.answer(error.refused)
            if run and run.is_complete:
                async for end in self._end(run):
                    yield end
                run = None

    async def _next(self, run: _Run | None) -> Scan | RunOver:
        if self._news is None:
            self._news = asyncio.ensure_future(anext(self._scans))
        await asyncio.wait([self._news], timeout=run.patience_s(time.perf_counter()) if run else None)
        if not self._news.done():
            return RunOver()
        news, self._news = self._news.result(), None
        return news

    def _start(self, scan: Scan) -> wire.RunStart:
        """The run's start that fits a volume. :raises _RefusedError: where there can be no such run."""
        plan = self._plan
        if scan.index >= plan.n_volumes:
            raise _refused(
                scan,
                "index",
                f"expected {plan.n_volumes} volumes, as planned with --volumes, got volume {scan.index}, "
                "counted from 0",
            )
        if scan.series in self._over:
            raise _refused(scan, "over", f"expected no more of series {scan.series}, whose run has ended")
        fields = {
            "run_id": f"{plan.run_id}_series-{scan.series}" if scan.series else plan.run_id,
            "subject": plan.subject,
            "tr_s": plan.tr_s if scan.tr_s is None else scan.tr_s,
            "n_volumes": plan.n_volumes,
            "shape": scan.shape,
            "affine": scan.affine,
            "dtype": scan.dtype,
        }
        try:
            return msgspec.convert(fields, wire.RunStart)
        except msgspec.ValidationError as error:
            text = f"expected volumes of a run that can be decoded: {error}"
            raise _refused(scan, "header", text) from error

    def _end(self, run: _Run) -> AsyncIterator[Received]:
        if run.series:
            self._over.add(run.series)
        return run.ends()


class _Run:
    """The run that is open."""

    def __init__(self, start: wire.RunStart, series: str, accepted: wire.RunAccepted) -> None:
        self._start = start
        self.series = series
        self._came = {index for first, end in accepted.held for index in range(first, end)}
        self._first_crc: int | None = None
        self._heard_s = float("-inf")

    def was_left_open_before(self, scan: Scan) -> bool:
        """Whether the pipeline has this run from before a restart, and the scanner begins another."""
        return not self.series and scan.index == 0 and bool(self._came)

    def is_followed_by(self, scan: Scan) -> bool:
        """Whether a volume belongs to another run. One that is sent again has the same voxels."""
        if scan.series != self.series:
            return True
        if scan.series or scan.index:
            return False
        if self._first_crc is None:  # the run goes on after a restart, or was joined after its volume 0
            return 0 in self._came or max(self._came, default=0) > _OUT_OF_ORDER
        return zlib.crc32(scan.payload) != self._first_crc

    def volume(self, scan: Scan, said: _Reply) -> Received:
        """A volume of the run; the scanner hears what is said to it, but for trouble, after which it comes
        again.

        :raises _RefusedError: where it does not look like the run's first.
        """
        if (scan.shape, scan.dtype) != (self._start.shape, self._start.dtype):
            raise _refused(
                scan,
                "grid",
                f"expected {self._start.shape} of {self._start.dtype}, as the run began with, got "
                f"{scan.shape} of {scan.dtype}",
            )
        if scan.index == 0:
            self._first_crc = zlib.crc32(scan.payload)
        self._heard_s = scan.received_s

        async def reply(message: wire.ToScanner) -> None:
            await said.take(message)
            if isinstance(message, wire.Ack):
                self._came.add(scan.index)
                self._heard_s = time.perf_counter()  # it may have been tried for long
            if isinstance(message, wire.Ack | wire.Refused) and not said.is_trouble:
                await scan.answer(message)

        acquired_s = (scan.index + 1) * self._start.tr_s
        message = wire.Volume(run_id=self._start.run_id, index=scan.index, acquired_s=acquired_s)
        return Received(message=message, payload=scan.payload, received_s=scan.received_s, reply=reply)

    def ends(self) -> AsyncIterator[Received]:
        return _ends(self._start, "complete" if self._has_last else "aborted")

    def patience_s(self, now_s: float) -> float | None:
        """How long to wait for more; None: as long as it takes."""
        return max(0.0, self._heard_s + QUIET_TR * self._start.tr_s - now_s) if self._has_last else None

    @property
    def is_complete(self) -> bool:
        return len(self._came) == self._start.n_volumes

    @property
    def _has_last(self) -> bool:
        return self._start.n_volumes - 1 in self._came


class _Reply:
    """What the pipeline said to a message."""

    def __init__(self) -> None:
        self.message: wire.ToScanner | None = None

    async def take(self, message: wire.ToScanner) -> None:
        self.message = message

    @property
    def accepted(self) -> wire.RunAccepted:
        """:raises _RefusedError: where the run was not taken."""
        if isinstance(self.message, wire.RunAccepted):
            return self.message
        if isinstance(self.message, wire.Refused):
            raise _RefusedError(self.message)
        raise _RefusedError(wire.Refused(run_id="", code=TROUBLE, message="the run was not answered"))

    @property
    def is_trouble(self) -> bool:
        """Whether the pipeline would take the message another time."""
        return isinstance(self.message, wire.Refused) and self.message.code == TROUBLE

    @property
    def is_of_another_plan(self) -> bool:
        """Whether the pipeline has a run of this id that began otherwise: one left open before a restart."""
        return isinstance(self.message, wire.Refused) and self.message.code == "run-start"


async def _ends(start: wire.RunStart, reason: Literal["complete", "aborted"]) -> AsyncIterator[Received]:
    """A run's end, again every TR while the pipeline has no room to write it and so keeps the run open."""
    message = wire.RunEnd(run_id=start.run_id, reason=reason)
    while True:
        reply = _Reply()
        yield Received(message=message, payload=_NOTHING, received_s=time.perf_counter(), reply=reply.take)
        if not isinstance(reply.message, wire.Refused):
            return
        await asyncio.sleep(start.tr_s)
        if not reply.is_trouble:
            return


class _RefusedError(Exception):
    """Ends the way of a volume; its scanner is told why."""

    def __init__(self, refused: wire.Refused) -> None:
        super().__init__(refused.message)
        self.refused = refused


def _refused(scan: Scan, code: str, message: str) -> _RefusedError:
    _log.warning("refused volume %d: %s", scan.index, message)
    return _RefusedError(wire.Refused(run_id="", code=code, message=message, index=scan.index))
