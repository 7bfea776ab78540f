"""The wiring: messages in, windows to the decoders, frames out; one task each, and one thread that decodes.

    source ─► journal ─► acknowledge ─► reorder ─► preprocess ─► newest window ─► decoders ─► frames

The compute latency of a frame runs from the arrival of the last byte of its volume to the moment the frame is
handed to the listeners; after that it is written to the run folder.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import msgspec

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Sampler
from realtime.decoding.decoder import Decoder
from realtime.errors import RealtimeError, RecordError, WireError
from realtime.events import Broadcast, Event, Shown, State, Status
from realtime.record.run_json import EngineUsed, Faces
from realtime.runs.decode_loop import DecodeLoop
from realtime.runs.resume import begin, is_closed, open_folders, recorded_events, reopen
from realtime.runs.run import Run
from realtime.runs.status import STALE_TR, run_state, status_of
from realtime.sources import Received, Source

_NEVER = float("-inf")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all runs have in common."""

    bundle: Bundle
    bundle_is_demo: bool
    engine: str
    """Its description, for people."""
    engine_name: str = ""
    """As ``--engine`` takes it."""
    sampler: Sampler | None
    """What to decode everything with; None: with the best for which there is time."""
    seed: int
    faces: Faces = "shown"
    """What the decoders do with faces."""
    carry: bool = False
    """Whether a run begins with the statistics of the run before, not with the bundle's prior."""
    out: Path
    """Where run folders are made."""


class Pipeline:
    """Serves one run after the other until it is cancelled."""

    def __init__(
        self,
        settings: Settings,
        source: Source,
        decoders: Sequence[Decoder],
        on_closed: Callable[[Path], None],
        worker: ThreadPoolExecutor | None = None,
    ) -> None:
        """Serve one bundle.

        :param decoders: the bundle's, in its order
        :param on_closed: takes the folder of every run that ends
        :param worker: the one thread on which the decoders were made, where that matters to their engine
        """
        self._settings = settings
        self._engine = EngineUsed(name=settings.engine_name, description=settings.engine)
        self._source = source
        self._on_closed = on_closed
        self._run: Run | None = None
        self._is_open = False
        self._heard_s = _NEVER
        self.broadcast = Broadcast(self._status(f"waiting for the scanner; decoding on {settings.engine}"))
        self._decoding = DecodeLoop(
            decoders,
            settings.bundle.spec.samplers,
            settings.sampler,
            open_run=lambda: self._open_run,
            send=self.broadcast.send,
            decoded=lambda run: self._send_status(run.message),
            worker=worker,
        )

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_messages())
            tasks.create_task(self._watch_time())
            tasks.create_task(self._decoding.run())

    def resume_last(self) -> None:
        """Before :meth:`run`: resume the last run that was left open, if any."""
        for path in open_folders(self._settings.out, self._settings.bundle.sha256)[:1]:
            try:
                self._adopt(reopen(path, self._settings.bundle, self._engine, self._settings.faces))
            except RecordError as error:
                _log.warning("%s", error)

    def stop(self, *, end_run: bool) -> Path | None:
        """Once :meth:`run` is over: release the open run, if any, and return its folder.

        :param end_run: close it for good; otherwise, or if the disk does not take that, a later runtime can
            resume it
        """
        self._decoding.stop()
        run = self._open_run
        if run is None:
            return None
        try:
            self._let_go(run, end_run=end_run)
        except RecordError as error:  # it can be resumed: the journal has all that was acknowledged
            _log.error("%s", error)
        self._is_open = False
        return run.folder.path

    def _let_go(self, run: Run, *, end_run: bool) -> None:
        try:
            if end_run:
                run.abort("the runtime was stopped")
                self._close(run, "stopped with the runtime")
            else:
                run.folder.note(f"the runtime was stopped at {run.where()}; the run is still open")
        finally:
            run.folder.suspend()

    # Messages

    async def _take_messages(self) -> None:
        while True:
            received = await self._source.receive()
            try:
                await self._handle(received)
            except RealtimeError as error:
                await self._refuse(received, error)

    async def _refuse(self, received: Received, error: RealtimeError) -> None:
        message = received.message
        code = error.code if isinstance(error, WireError) else "runtime"
        index = message.index if isinstance(message, wire.Volume) else None
        _log.warning("refused a %s of %s: %s", type(message).__name__, message.run_id, error)
        refused = wire.Refused(run_id=message.run_id, code=code, message=str(error), index=index)
        await received.reply(refused)
        said = f"refused a {type(message).__name__}: {error}"
        run = self._open_run
        if run and run.start.run_id == message.run_id and isinstance(error, RecordError):
            run.disk_failed(error)
        elif run:
            run.tell(said)  # so that it stays on the page after the next volume's status
        self._send_status(said)

    async def _handle(self, received: Received) -> None:
        message = received.message
        if isinstance(message, wire.RunStart):
            await self._start(message, received)
        elif isinstance(message, wire.RunEnd):
            await self._end(message, received)
        elif isinstance(message, wire.Volume):
            await self._volume(self._run_of(message), message, received)
        else:
            await self._marker(self._run_of(message), message, received)

    async def _start(self, message: wire.RunStart, received: Received) -> None:
        settings = self._settings
        message = msgspec.structs.replace(message, secret=None)  # it is not recorded
        settings.bundle.check_run(message)
        run = self._open_run
        if run and run.start.run_id != message.run_id:
            await self._make_room(run, message)
            run = None
        run = run or self._adopt(self._begin(message))
        if run.start != message:
            raise WireError(
                "run-start",
                f"expected the run start with which {message.run_id} was opened, got a different one; give "
                "the new run an id of its own",
            )
        if run.position is not None:
            run.tell(f"the scanner is back; the run goes on after {run.where()}")
        self._heard_s = perf_counter()
        run.scanner_is_back(self._heard_s)
        await received.reply(wire.RunAccepted(run_id=message.run_id, held=run.account.held))
        self._send_status(run.message)

    def _begin(self, message: wire.RunStart) -> Run:
        settings = self._settings
        return begin(
            settings.out,
            settings.bundle,
            settings.seed,
            message,
            self._engine,
            settings.faces,
            carry=settings.carry,
        )

    async def _volume(self, run: Run, message: wire.Volume, received: Received) -> None:
        arrival = run.receive(message, received.payload, received.received_s)
        await received.reply(wire.Ack(run_id=message.run_id, index=message.index))
        self._heard_s = received.received_s
        if arrival:
            run.take(message.index, arrival)
            self._decoding.wake()
        self._send_status(run.message)

    async def _marker(self, run: Run, message: wire.Marker, received: Received) -> None:
        png = run.show(message, received.payload)
        await received.reply(wire.MarkerAck(run_id=message.run_id, onset_volume=message.onset_volume))
        if png is not None:
            shown = Shown(run_id=run.name, onset_volume=message.onset_volume, name=message.name)
            self.broadcast.send(Event(shown, png=png))

    async def _end(self, message: wire.RunEnd, received: Received) -> None:
        run = self._open_run
        if run and run.start.run_id == message.run_id:
            await self._finish(run, "the scanner aborted the run" if message.reason == "aborted" else "")
        elif not is_closed(self._settings.out, message.run_id):
            raise WireError("no-run", f"expected the end of an open run, got that of {message.run_id}")
        await received.reply(wire.RunClosed(run_id=message.run_id))

    # Runs

    @property
    def _open_run(self) -> Run | None:
        return self._run if self._is_open else None

    def _run_of(self, message: wire.Volume | wire.Marker) -> Run:
        run = self._open_run
        if run is None or run.start.run_id != message.run_id:
            raise WireError(
                "no-run",
                f"expected a message of an open run, got one of {message.run_id}; send its run start first",
            )
        return run

    async def _make_room(self, run: Run, message: wire.RunStart) -> None:
        """End a run whose scanner is gone, so that another can begin; refuse if it may still send."""
        if perf_counter() - self._heard_s <= STALE_TR * run.start.tr_s:
            raise WireError(
                "busy",
                f"expected messages of {run.start.run_id}, which is open, got the start of {message.run_id}; "
                f"end the open run, or wait {STALE_TR} TR without a volume",
            )
        await self._finish(run, f"given up at {run.where()}: another run began")

    def _adopt(self, run: Run) -> Run:
        self._run, self._is_open = run, True
        self._heard_s = _NEVER
        self._send_status(run.message)
        for event in recorded_events(run):
            self.broadcast.send(event)
        self._decoding.wake()
        return run

    async def _finish(self, run: Run, note: str) -> None:
        """Settle the volumes that have not come, wait for the last decode, and close the run."""
        run.finish()
        await self._decoding.drain(run)
        self._close(run, note)

    def _close(self, run: Run, note: str) -> None:
        run.close(note)
        if note:
            run.tell(note)
        self._is_open = False
        self._on_closed(run.folder.path)
        self._send_status(note or "the run is complete; waiting for the next")

    # Time

    async def _watch_time(self) -> None:
        while True:
            await asyncio.sleep(self._settings.bundle.spec.tr_s / 4)
            run = self._open_run
            if run is None or self._heard_s == _NEVER:
                continue
            before = run.account.counts
            run.expire(perf_counter())
            if run.account.counts != before or self._state() != self.broadcast.status.state:
                self._decoding.wake()
                self._send_status(run.message)

    # What listeners see

    def _state(self) -> State:
        silent_s = perf_counter() - self._heard_s
        return run_state(self._run, is_open=self._is_open, silent_s=silent_s)

    def _status(self, message: str) -> Status:
        settings = self._settings
        return status_of(self._run, self._state(), message, settings.bundle, is_demo=settings.bundle_is_demo)

    def _send_status(self, message: str) -> None:
        self.broadcast.send(Event(self._status(message)))
