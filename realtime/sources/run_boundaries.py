"""Derives starts and ends of runs from volumes and the operator's plan, for scanners that send neither.

    input                                                output to the pipeline
    the first volume                                     RunStart, Volume
    a volume of another series, or a different volume 0  RunEnd, RunStart, Volume
    the last missing volume of the plan                  Volume, RunEnd
    silence for some TR after the last planned volume    RunEnd
    the scanner's end of the run                         RunEnd
    a volume beyond the plan                             none; the volume is refused

The run id is that of the plan, followed by the series if the scanner has series. A repeated run is recorded
as the next take. A run that a restart of the runtime left open continues. If the pipeline's disk is full, the
message is repeated every TR until there is room. Meanwhile the volume is not answered and later ones wait. If
the run's folder was deleted, the pipeline asks for the start again, and so the run continues elsewhere.
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
"""How many TR a run waits for missing volumes after its last volume."""
TROUBLE = "runtime"
"""Code of a temporary refusal by the pipeline, for example because its disk is full."""
RUN_GONE = "no-run"
"""Code of a refusal by a pipeline that does not have the run open any more, or not yet again."""
_OUT_OF_ORDER = 2
"""Volume 0 may arrive after a volume up to this index and still belong to the same run."""
_NOTHING = memoryview(b"")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the operator specifies about the next runs."""

    subject: int
    run_id: str
    n_volumes: int
    tr_s: float
    """Used if the scanner does not send the TR, or sends a wrong one."""
    is_tr_certain: bool = False
    """Whether the operator has given the TR, because the scanner sends a wrong one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A volume [x, y, z] with RAS+ axes, C order, little endian."""

    index: int
    shape: tuple[int, int, int]
    affine: wire.Affine
    dtype: str
    payload: memoryview
    received_s: float
    """Time when the volume was complete, by ``time.perf_counter``."""
    answer: Callable[[wire.Ack | wire.Refused], Awaitable[None]]
    """Tells the scanner, in its protocol, that the volume is in the journal or why it is refused."""
    tr_s: float | None = None
    series: str = ""
    """Letters and digits; equal for all volumes of a run. Empty if the scanner has no series."""


@dataclass(frozen=True, slots=True)
class RunOver:
    """The scanner reports the end of its run."""


class Scanner(Protocol):
    """Receives volumes, and ends of runs if the protocol has them."""

    async def start(self) -> str:
        """Start listening and return the address. :raises ServeError: when it cannot or may not listen"""
        ...

    def scans(self) -> AsyncIterator[Scan | RunOver]:
        """Yield all valid input; refuse and log the rest."""
        ...

    async def stop(self) -> None:
        """Stop listening."""
        ...


class RunBoundarySource:
    """A :class:`realtime.sources.Source` that adds starts and ends of runs to the volumes of a scanner."""

    def __init__(self, scanner: Scanner, plan: Plan) -> None:
        self._scanner = scanner
        self._plan = plan
        self._scans = scanner.scans()
        self._news: asyncio.Task[Scan | RunOver] | None = None
        self._messages = self._announce()
        self._over: set[str] = set()
        """Series whose run has ended; later volumes of these do not begin a new run."""

    async def start(self) -> str:
        """Start listening and return the address. :raises ServeError: when it cannot or may not listen"""
        return await self._scanner.start()

    async def receive(self) -> Received:
        """Return the next message; the caller must reply to it before it asks for another."""
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
                    yield _starting(start, news.received_s, reply)
                    if reply.is_trouble:
                        await asyncio.sleep(start.tr_s)  # retrying at once would block the event loop
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
                while reply.is_to_repeat:
                    if reply.is_run_gone:
                        yield _starting(start, news.received_s, reply := _Reply())
                    if reply.is_trouble:
                        await asyncio.sleep(start.tr_s)
                    else:
                        run.goes_on(reply.accepted)
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
        """Make the start of a run from its first volume. :raises _RefusedError: when there is no such run"""
        plan = self._plan
        if scan.index >= plan.n_volumes:
            raise _refused(
                scan,
                "index",
                f"expected volumes 0 to {plan.n_volumes - 1}, as given by --volumes, got volume {scan.index}",
            )
        if scan.series in self._over:
            raise _refused(scan, "over", f"expected another series than {scan.series}, whose run has ended")
        fields = {
            "run_id": f"{plan.run_id}_series-{scan.series}" if scan.series else plan.run_id,
            "subject": plan.subject,
            "tr_s": plan.tr_s if scan.tr_s is None or plan.is_tr_certain else scan.tr_s,
            "n_volumes": plan.n_volumes,
            "shape": scan.shape,
            "affine": scan.affine,
            "dtype": scan.dtype,
        }
        try:
            return msgspec.convert(fields, wire.RunStart)
        except msgspec.ValidationError as error:
            text = f"expected a valid run: {error}"
            raise _refused(scan, "header", text) from error

    def _end(self, run: _Run) -> AsyncIterator[Received]:
        if run.series:
            self._over.add(run.series)
        return run.ends()


class _Run:
    """The open run."""

    def __init__(self, start: wire.RunStart, series: str, accepted: wire.RunAccepted) -> None:
        self._start = start
        self.series = series
        self._came = _indices(accepted)
        self._first_crc: int | None = None
        self._heard_s = float("-inf")

    def goes_on(self, accepted: wire.RunAccepted) -> None:
        """Learn what the pipeline has of the run, which it goes on with elsewhere."""
        self._came = _indices(accepted)

    def was_left_open_before(self, scan: Scan) -> bool:
        """Whether the pipeline left this run open before a restart and ``scan`` begins another run."""
        return not self.series and scan.index == 0 and bool(self._came)

    def is_followed_by(self, scan: Scan) -> bool:
        """Whether a volume belongs to another run; a volume that is sent again has the same voxels."""
        if scan.series != self.series:
            return True
        if scan.series or scan.index:
            return False
        if self._first_crc is None:  # the run continues after a restart, or began before the runtime
            return 0 in self._came or max(self._came, default=0) > _OUT_OF_ORDER
        return zlib.crc32(scan.payload) != self._first_crc

    def volume(self, scan: Scan, said: _Reply) -> Received:
        """Make the message of a volume. The reply goes to the scanner, except a temporary refusal.

        :raises _RefusedError: when shape or dtype differ from the run's first volume
        """
        if (scan.shape, scan.dtype) != (self._start.shape, self._start.dtype):
            raise _refused(
                scan,
                "grid",
                f"expected {self._start.shape} of {self._start.dtype}, as in the run's first volume, got "
                f"{scan.shape} of {scan.dtype}",
            )
        if scan.index == 0:
            self._first_crc = zlib.crc32(scan.payload)
        self._heard_s = scan.received_s

        async def reply(message: wire.ToScanner) -> None:
            await said.take(message)
            if isinstance(message, wire.Ack):
                self._came.add(scan.index)
                self._heard_s = time.perf_counter()  # retries may have taken long
            if isinstance(message, wire.Ack | wire.Refused) and not said.is_to_repeat:
                await scan.answer(message)

        acquired_s = (scan.index + 1) * self._start.tr_s
        message = wire.Volume(run_id=self._start.run_id, index=scan.index, acquired_s=acquired_s)
        if scan.affine != self._start.affine:
            message = msgspec.structs.replace(message, affine=scan.affine)
        return Received(message=message, payload=scan.payload, received_s=scan.received_s, reply=reply)

    def ends(self) -> AsyncIterator[Received]:
        return _ends(self._start, "complete" if self._has_last else "aborted", is_ours=True)

    def patience_s(self, now_s: float) -> float | None:
        """Seconds to wait for more volumes; None means without limit."""
        return max(0.0, self._heard_s + QUIET_TR * self._start.tr_s - now_s) if self._has_last else None

    @property
    def is_complete(self) -> bool:
        return len(self._came) == self._start.n_volumes

    @property
    def _has_last(self) -> bool:
        return self._start.n_volumes - 1 in self._came


class _Reply:
    """Stores the pipeline's reply to a message."""

    def __init__(self) -> None:
        self.message: wire.ToScanner | None = None

    async def take(self, message: wire.ToScanner) -> None:
        self.message = message

    @property
    def accepted(self) -> wire.RunAccepted:
        """The acceptance of the run. :raises _RefusedError: when the run was refused"""
        if isinstance(self.message, wire.RunAccepted):
            return self.message
        if isinstance(self.message, wire.Refused):
            raise _RefusedError(self.message)
        raise _RefusedError(wire.Refused(run_id="", code=TROUBLE, message="the run was not answered"))

    @property
    def is_trouble(self) -> bool:
        """Whether the refusal is temporary."""
        return isinstance(self.message, wire.Refused) and self.message.code == TROUBLE

    @property
    def is_run_gone(self) -> bool:
        """Whether the pipeline wants the start of the run again."""
        return isinstance(self.message, wire.Refused) and self.message.code == RUN_GONE

    @property
    def is_to_repeat(self) -> bool:
        """Whether the message is sent again, and the scanner not told."""
        return self.is_trouble or self.is_run_gone

    @property
    def is_of_another_plan(self) -> bool:
        """Whether a run of this id with another start was left open before a restart."""
        return isinstance(self.message, wire.Refused) and self.message.code == "run-start"


async def _ends(
    start: wire.RunStart, reason: Literal["complete", "aborted"], *, is_ours: bool = False
) -> AsyncIterator[Received]:
    """Yield the end of a run; repeat it every TR while the pipeline refuses it temporarily.

    :param is_ours: whether the run has this start; then it is sent again if the pipeline asks for it
    """
    message = wire.RunEnd(run_id=start.run_id, reason=reason)
    while True:
        reply = _Reply()
        yield Received(message=message, payload=_NOTHING, received_s=time.perf_counter(), reply=reply.take)
        if not isinstance(reply.message, wire.Refused):
            return
        await asyncio.sleep(start.tr_s)
        if reply.is_run_gone and is_ours:
            is_ours = False  # once
            yield _starting(start, time.perf_counter(), _Reply())
        elif not reply.is_trouble:
            return


def _starting(start: wire.RunStart, received_s: float, reply: _Reply) -> Received:
    return Received(message=start, payload=_NOTHING, received_s=received_s, reply=reply.take)


def _indices(accepted: wire.RunAccepted) -> set[int]:
    return {index for first, end in accepted.held for index in range(first, end)}


class _RefusedError(Exception):
    """A volume is refused; the scanner gets the reason."""

    def __init__(self, refused: wire.Refused) -> None:
        super().__init__(refused.message)
        self.refused = refused


def _refused(scan: Scan, code: str, message: str) -> _RefusedError:
    _log.warning("refused volume %d: %s", scan.index, message)
    return _RefusedError(wire.Refused(run_id="", code=code, message=message, index=scan.index))
