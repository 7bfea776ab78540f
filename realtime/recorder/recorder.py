"""The recorder: messages of a source into the journal of their run, each answered once it is there.

    source ─► owner? ─► checksum, index, size ─► journal ─► acknowledge ─► tell decoder and page

It decodes nothing and waits for nobody. A run belongs to the peer that started it: the recorder refuses
volumes, ends and restarts of others. Time comes in with the messages.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from realtime import wire
from realtime.bundle.match import check_run, is_on_grid, resampled_to_s
from realtime.bundle.spec import Spec
from realtime.errors import RealtimeError, RecordError, RecordGoneError, WireError
from realtime.events import Recording
from realtime.preprocessing.spikes import SpikeRule
from realtime.record.png import check_png_structure
from realtime.record.run_journal import RunJournal, has_ended, open_folders
from realtime.record.run_json import Owner, Registration, decoders_of, new_run_file, read_run_file, takes_of
from realtime.recorder.owner import STALE_TR, check_owner, claim_of
from realtime.sources import Peer, Received, Source

FAR_AHEAD = 32
"""A volume that comes this many before its turn is an alarm; it is kept, and waits for those before it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all runs have in common."""

    spec: Spec
    bundle_sha256: str
    seed: int
    """Of the decoder's noise."""
    out: Path
    """Where run folders are made."""
    fallback_out: Path | None = None
    """Where a run goes on whose folder is gone; by default in ``out``."""
    registration: Registration = Registration()
    """How volumes on another grid than the decoder's are registered."""
    registers_all: bool = False
    """Whether volumes on the decoder's own grid are registered too."""
    resamples: bool = False
    """Whether runs with another TR than the decoder's are taken, and resampled in time."""


class Recorder:
    """Serves one run after the other until it is cancelled.

    :param tell: takes what the recorder does, on every change
    """

    def __init__(self, settings: Settings, source: Source, tell: Callable[[Recording], None]) -> None:
        self._settings = settings
        self._source = source
        self._tell = tell
        self._run: RunJournal | None = None
        self._unsaved: RunJournal | None = None
        """A run whose folder is gone, and for which there was no room elsewhere."""
        self._owner: Owner | None = None
        self._peer: Peer | None = None
        """The owner's connection, once it has sent its start to this process."""
        self._heard_s = self._adopted_s = float("-inf")
        self.recording = Recording()

    async def run(self) -> None:
        """Take messages until cancelled."""
        while True:
            received = await self._source.receive()
            try:
                await self._handle(received)
            except RecordGoneError as error:
                refusal = await self._go_on_elsewhere(error)
                if self._run and self._run.is_over:  # its end had been written, and was saved with the rest
                    await received.reply(wire.RunClosed(run_id=self._run.start.run_id))
                else:
                    await self._refuse(received, refusal)
            except RealtimeError as error:
                await self._refuse(received, error)

    def adopt_last(self) -> None:
        """Before :meth:`run`: go on with the last run that was left open, if there is one."""
        for root in self._roots:
            for path in open_folders(root, self._settings.bundle_sha256)[:1]:
                try:
                    self._adopt(RunJournal.reopen(path))
                except RecordError as error:
                    _log.warning("cannot go on with %s: %s", path, error)
                else:
                    return

    def stop(self) -> None:
        """Close the journal; the run stays open, and the next recorder goes on with it."""
        run, self._run = self._run, None
        if run:
            try:
                run.close()
            except RecordError as error:
                _log.error("%s", error)
        if self._unsaved:
            self._unsaved.abandon()

    # Messages

    async def _handle(self, received: Received) -> None:
        message = received.message
        if isinstance(message, wire.RunStart):
            await self._start(message, received)
        elif isinstance(message, wire.RunEnd):
            await self._end(message, received)
        elif isinstance(message, wire.Volume):
            await self._volume(message, received)
        else:
            await self._marker(message, received)

    async def _refuse(self, received: Received, error: RealtimeError) -> None:
        message = received.message
        code = error.code if isinstance(error, WireError) else "runtime"
        index = message.index if isinstance(message, wire.Volume) else None
        said = f"refused a {type(message).__name__} of {message.run_id}: {error}"
        _log.warning("%s", said)
        await received.reply(wire.Refused(run_id=message.run_id, code=code, message=str(error), index=index))
        if isinstance(error, RecordError):
            alarm = (
                f"recording has stopped {self._where()}: {error}; free or repair the disk so that it goes on"
            )
            if not self.recording.alarm:
                _log.error("%s", alarm)
            self._say(message=said, alarm=alarm)
        else:
            self._say(message=said)

    async def _start(self, message: wire.RunStart, received: Received) -> None:
        check_run(self._settings.spec, message, resamples=self._settings.resamples)
        start = msgspec.structs.replace(message, secret=None)
        claim = claim_of(message, received.peer)
        run = self._open_run
        if run and run.start.run_id != start.run_id:
            await self._make_room(run, start, claim)
            run = None
        is_new = run is None
        run = run or self._adopt(await self._save_again(start) or self._begin(start, claim))
        check_owner(self._owner, claim, run.start, received.received_s - self._heard_s)
        self._owner, self._peer = claim, received.peer  # also to end the run if its start is refused
        if run.start != start:
            raise WireError(
                "run-start",
                f"expected the run start with which {start.run_id} was opened, got a different one; give the "
                "new run an id of its own",
            )
        if not is_new and run.n_volumes:
            run.add_return(_utc_s(received))
        self._heard_s = received.received_s
        await received.reply(wire.RunAccepted(run_id=start.run_id, held=run.held))
        self._say(message=f"{start.run_id} begins" if is_new else f"the scanner of {start.run_id} is back")

    async def _volume(self, message: wire.Volume, received: Received) -> None:
        run = self._run_of(message, received.peer)
        wire.verify_checksum(message, received.payload)
        if message.index >= run.start.n_volumes:
            raise WireError(
                "index",
                f"expected a volume below {run.start.n_volumes}, as planned in the run's start, got index "
                f"{message.index}",
            )
        wire.volume_array(run.start, received.payload)  # checks its size
        newest = run.newest
        is_new = run.add_volume(message, received.payload, _utc_s(received))
        await received.reply(wire.Ack(run_id=message.run_id, index=message.index))
        self._heard_s = received.received_s
        if not is_new:
            _log.info("a volume came again; the first is kept")
            return
        ahead = message.index - (-1 if newest is None else newest)
        said = self.recording.message
        if self.recording.alarm:
            said = f"recording goes on {_after(newest)}"
            _log.info("%s", said)
        if ahead > FAR_AHEAD:
            said = f"volume {message.index} came {ahead} volumes ahead; it waits for those before it"
            _log.warning("%s", said)
        self._say(message=said, alarm="")

    async def _marker(self, message: wire.Marker, received: Received) -> None:
        run = self._open_run
        if run is None or run.start.run_id != message.run_id:
            raise _no_run(message)
        if message.onset_volume >= run.start.n_volumes:
            raise WireError(
                "index",
                f"expected a marker below volume {run.start.n_volumes}, got one at {message.onset_volume}",
            )
        if received.payload:  # a marker may have no more than a name
            check_png_structure(received.payload)
        run.add_marker(message, received.payload, _utc_s(received))
        await received.reply(wire.MarkerAck(run_id=message.run_id, onset_volume=message.onset_volume))
        self._say()

    async def _end(self, message: wire.RunEnd, received: Received) -> None:
        run = self._open_run
        if run and run.start.run_id == message.run_id:
            self._run_of(message, received.peer)
            await self._finish(run, message, _utc_s(received))
        elif not self._is_closed(message.run_id):
            raise _no_run(message)
        await received.reply(wire.RunClosed(run_id=message.run_id))

    # Runs

    @property
    def _open_run(self) -> RunJournal | None:
        return self._run if self._run and not self._run.is_over else None

    def _run_of(self, message: wire.Volume | wire.RunEnd, peer: Peer) -> RunJournal:
        """The open run, which a message must belong to, from the peer that owns it."""
        run = self._open_run
        if run is None or run.start.run_id != message.run_id:
            raise _no_run(message)
        if peer != self._peer:
            if self._owner is None or self._owner.key == peer.key:
                raise _no_run(message)  # on another connection a scanner sends its start again
            raise WireError(
                "not-owner",
                f"{message.run_id} belongs to the peer that started it; only that one adds to it or ends it",
            )
        return run

    def _begin(self, start: wire.RunStart, owner: Owner) -> RunJournal:
        """Go on with the run's last take if it is open and was made with this bundle; else begin the next."""
        settings = self._settings
        for path in self._last_takes(start.run_id):
            try:
                if has_ended(path):
                    continue
                info = read_run_file(path)
                theirs = (info.bundle_sha256, info.start, info.replay_of)
                if theirs == (settings.bundle_sha256, start, None):
                    return RunJournal.reopen(path)
            except RecordError as error:
                _log.warning("%s", error)
        is_registered = settings.registers_all or not is_on_grid(settings.spec, start)
        if settings.registration != Registration() and not is_registered:
            _log.warning(
                "%s lies on the decoder's grid and is not registered: --initial, --max-fd and --fit-motion "
                "have no effect without --register-all",
                start.run_id,
            )
        info = new_run_file(
            start,
            bundle_name=settings.spec.name,
            bundle_sha256=settings.bundle_sha256,
            decoders=decoders_of(settings.spec, start),
            seed=settings.seed,
            spikes=SpikeRule(),
            registration=settings.registration if is_registered else None,
            resampled_to_s=resampled_to_s(settings.spec, start),
            owner=owner,
        )
        return RunJournal.create(settings.out, info)

    def _adopt(self, run: RunJournal) -> RunJournal:
        if self._run:
            self._run.abandon()
        self._run, self._owner = run, run.info.owner
        # A source without a network has one peer, and no connection; it may end a run before it starts one.
        self._peer = Peer(key=run.info.owner.key) if run.info.owner else Peer()
        self._heard_s, self._adopted_s = float("-inf"), time.perf_counter()
        self._say(message=f"{run.start.run_id} is recorded in {run.path}")
        return run

    async def _make_room(self, run: RunJournal, start: wire.RunStart, claim: Owner) -> None:
        """End a run whose scanner is gone, so that another can begin; refuse if it may still send."""
        heard_s = self._heard_s
        if self._owner and self._owner.key != claim.key:  # its owner has time to come back to this process
            heard_s = max(heard_s, self._adopted_s)
        if time.perf_counter() - heard_s <= STALE_TR * run.start.tr_s:
            raise WireError(
                "busy",
                f"expected messages of {run.start.run_id}, which is open, got the start of {start.run_id}; "
                f"end the open run, or wait {STALE_TR} TR without a volume",
            )
        try:
            end = wire.RunEnd(run_id=run.start.run_id, reason="given_up")
            await asyncio.to_thread(run.end, end, time.time())  # the disk may take long to sync
        except RecordError as error:  # it stays open; the next run must not wait for it
            _log.error("let go of %s: %s", run.path, error)
        run.abandon()

    async def _finish(self, run: RunJournal, message: wire.RunEnd, received_utc_s: float) -> None:
        try:
            await asyncio.to_thread(run.end, message, received_utc_s)  # the disk may take long to sync
        except RecordError:
            if run.is_over:  # its end is in the journal: the scanner's next one is answered by that
                run.abandon()
            raise
        run.close()
        self._say(message=f"{run.start.run_id} has ended", alarm="")

    async def _go_on_elsewhere(self, error: RecordGoneError) -> RealtimeError:
        """After a run's folder was deleted or its journal cut: save what is left, and tell the scanner.

        The scanner sends its start again, learns which volumes are held, and repeats the others.
        """
        run = self._open_run
        if run is None:  # what is gone is the folder of a run that was about to begin
            return error
        self._run = None
        try:
            saved = await self._rescue(run)
        except RecordError as failure:
            return RecordError(f"{error}; the run is let go of: {failure}")
        _log.error("%s; the run goes on in %s", error, saved.path)
        self._adopt(saved)
        self._say(message=f"{error}; the run goes on in {saved.path}")
        return WireError("no-run", f"{error}; send the run start again")

    async def _rescue(self, run: RunJournal) -> RunJournal:
        try:
            # A journal of gigabytes takes long to copy.
            return await asyncio.to_thread(run.rescue, self._settings.fallback_out or self._settings.out)
        except RecordError:
            if not run.is_closed:
                self._unsaved = run
            raise

    async def _save_again(self, start: wire.RunStart) -> RunJournal | None:
        """The run that could not be saved, if it is the one that starts and there is room for it now."""
        run, self._unsaved = self._unsaved, None
        if run and run.start == start:
            return await self._rescue(run)
        if run:
            _log.error("the volumes of %s are lost: another run begins", run.path)
            run.abandon()
        return None

    def _is_closed(self, run_id: str) -> bool:
        return any(has_ended(path) for path in self._last_takes(run_id))

    @property
    def _roots(self) -> list[Path]:
        """Where runs may be: a run whose folder was gone goes on in the first."""
        settings = self._settings
        return [settings.fallback_out, settings.out] if settings.fallback_out else [settings.out]

    def _last_takes(self, run_id: str) -> list[Path]:
        """The run's last take in each of the folders where runs may be."""
        takes = []
        for root in self._roots:
            try:
                takes += list(takes_of(root, run_id))[-1:]
            except OSError as error:
                raise RecordError(f"cannot look for runs in {root}: {error.strerror or error}") from error
        return takes

    def _where(self) -> str:
        """How far the open run has come, in words."""
        return _after(self._run.newest if self._run else None)

    def _say(self, message: str | None = None, alarm: str | None = None) -> None:
        run = self._run
        now = self.recording
        self.recording = Recording(
            run_folder=str(run.path) if run else now.run_folder,
            is_open=bool(run and not run.is_over),
            received=run.n_volumes if run else now.received,
            alarm=now.alarm if alarm is None else alarm,
            message=now.message if message is None else message,
        )
        self._tell(self.recording)


def _after(newest: int | None) -> str:
    return "before the first volume" if newest is None else f"after volume {newest}"


def _no_run(message: wire.Volume | wire.Marker | wire.RunEnd) -> WireError:
    return WireError(
        "no-run", f"expected a message of an open run, got one of {message.run_id}; send its run start first"
    )


def _utc_s(received: Received) -> float:
    """When a message was complete, as UTC; its own time is of a clock that never jumps."""
    return time.time() - (time.perf_counter() - received.received_s)
