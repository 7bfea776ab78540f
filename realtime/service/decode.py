"""The decoder as a process: follows one run after the other, and tells page and subscribers of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from realtime.bundle.bundle import Bundle
from realtime.bundle.decoding_quality import quality_in_words
from realtime.bundle.signers import Trust
from realtime.decoding.open import OpenDecoders, open_decoders
from realtime.errors import RealtimeError, RecordError, ServeError
from realtime.events import Event, Publishing, Recording, State
from realtime.network.channel import BEAT_S, ChannelSender, Heard, listening
from realtime.network.publish import Publisher
from realtime.record.run_journal import has_ended, open_folders
from realtime.record.run_json import EngineUsed, Faces, read_run_file
from realtime.record.storage import lock_role
from realtime.runs.decode_loop import ByDeadline, DecodeLoop
from realtime.runs.follow import Following
from realtime.runs.open import open_run
from realtime.runs.run import Run
from realtime.runs.status import run_state, status_of
from realtime.service.after_run import AfterRun
from realtime.service.keys import keys_for
from realtime.service.process import Ready, every, say_ready, set_budget, until_stopped
from realtime.service.record import SEED

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to decode."""

    bundle: Path
    bundle_is_demo: bool
    trust: Trust = Trust()
    """Whose signatures of bundles count, and whether one is required."""
    out: Path
    engine: str = "auto"
    """One of :data:`realtime.decoding.engines.choose.ENGINES`."""
    sampler: str | None = None
    """The bundle's sampler to decode with; by default the best for which there is time."""
    show_faces: bool = False
    """Leave faces in the frames as they are; by default they are blurred on the page and in every output."""
    carry: bool = False
    """Whether a run begins with the statistics of the run before, not with the bundle's prior."""
    seal_to: tuple[str, ...] = ()
    """Public keys of age for which each closed run is sealed; none: runs stay in plain form."""
    keys: Path | None = None
    publish: str | None = None
    """Where frames are published, such as ``tcp://127.0.0.1:5556``; None: nowhere."""
    is_supervised: bool = False


def decode(options: Options) -> None:
    """Decode until Ctrl-C; a run that is open then is gone on with by the next decoder.

    :raises RealtimeError: when it cannot start
    """
    if options.seal_to:
        _check_can_seal(options)
    set_budget("decode")
    bundle = Bundle.open(options.bundle, options.trust)
    opened = open_decoders(
        bundle,
        options.engine,
        SEED,
        blurs_faces=not options.show_faces,
        begun_on=_begun_on(options.out.absolute(), bundle),
    )
    asyncio.run(_decode(options, bundle, opened))


def _begun_on(out: Path, bundle: Bundle) -> str:
    """The engine of the newest run that is open; empty where there is none, or nothing has decoded it yet."""
    for path in open_folders(out, bundle.sha256)[:1]:
        with contextlib.suppress(RecordError):
            return read_run_file(path).engine.name
    return ""


def _check_can_seal(options: Options) -> None:
    from realtime.record.age import recipients_of

    recipients_of(options.seal_to)
    if options.carry:
        raise ServeError(
            "--statistics carry reads the run before, and --seal-to encrypts it; leave one of the two out"
        )


async def _decode(options: Options, bundle: Bundle, opened: OpenDecoders) -> None:
    out = options.out.absolute()
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_role(out, "decoder"))
        channel = stack.enter_context(ChannelSender(out, "decoder"))
        publisher, address, published_at = None, "", []
        if options.publish:
            publisher = Publisher(options.publish, keys_for(options.keys, [options.publish]))
            address = publisher.start()
            published_at = [f"results published at {address}"]
            stack.callback(publisher.stop)
        shipped = "the shipped demo bundle (a simulated subject)" if options.bundle_is_demo else "bundle"
        spec = bundle.spec
        lines = [
            f"decoding with {shipped} {spec.name}, subject {spec.subject}: {bundle.folder}",
            f"the bundle is {bundle.signed.description}",
            f"by its own evaluation: {quality_in_words(spec)}",
            f"on {opened.engine_description}",
            *([opened.reason] if opened.reason else []),
            *published_at,
        ]
        service = DecoderService(options, bundle, opened, channel, publisher)
        say_ready(Ready(lines=lines, address=address), is_supervised=options.is_supervised)
        try:
            await until_stopped(service.run(), is_supervised=options.is_supervised)
        finally:
            await service.stop()


class DecoderService:
    """Follows runs until it is cancelled."""

    def __init__(
        self,
        options: Options,
        bundle: Bundle,
        opened: OpenDecoders,
        channel: ChannelSender,
        publisher: Publisher | None,
    ) -> None:
        self._out = options.out.absolute()
        self._carry = options.carry
        self._is_demo = options.bundle_is_demo
        self._faces: Faces = "shown" if options.show_faces else "blurred"
        self._bundle = bundle
        self._engine = EngineUsed(name=opened.engine_name, description=opened.engine_description)
        self._channel = channel
        self._publisher = publisher
        sampler = bundle.sampler(options.sampler) if options.sampler else None
        policy = ByDeadline(opened.decoders, bundle.spec.samplers, sampler)
        self._decoding = DecodeLoop(opened.decoders, policy, self._send, opened.worker)
        self._recording = Recording()
        self._news = asyncio.Event()
        self._run: Run | None = None
        self._following: Following | None = None
        self._is_open = False
        self._message = f"waiting for the scanner; decoding on {opened.engine_description}"
        self._damaged: set[tuple[Path, str]] = set()
        """Runs that could not be decoded: folder, and when opened. Once it is moved away, another may
        have its name."""
        self._after_run = AfterRun(options.seal_to, channel.send, self._tell_of_sealing)

    async def run(self) -> None:
        """Follow runs until cancelled."""
        self._after_run.take_left_over(self._out)
        async with listening(self._out, "recorder") as heard, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear(heard))
            tasks.create_task(every(BEAT_S, self._beat))
            tasks.create_task(self._follow_runs())

    async def stop(self) -> None:
        """Once :meth:`run` is over: let go of the open run, and wait for reports and seals."""
        if self._following:
            await self._following.stop()
        self._decoding.stop()
        run, self._run = self._run, None
        if run and self._is_open:
            try:
                run.folder.note(f"the runtime was stopped at {run.where()}; the run is still open")
            except RecordError as error:  # the journal has all that was acknowledged
                _log.error("%s", error)
            run.folder.let_go()
            self._after_run.take(run.folder.path, is_closed=False)
        await self._after_run.stop()

    # Runs

    async def _follow_runs(self) -> None:
        for path in self._left_open():
            await self._follow(path)
        while True:
            current = self._recording.run_folder
            if current and self._is_to_follow(Path(current)):
                for path in self._ended():  # that began and ended while this process did something else
                    await self._follow(path)
                await self._follow(Path(current))
            else:
                await self._wait(BEAT_S)

    def _left_open(self) -> Iterator[Path]:
        """Runs that have ended but are not closed, and the newest, whether it has ended or not."""
        yield from self._ended()
        yield from open_folders(self._out, self._bundle.sha256)[:1]

    def _ended(self) -> Iterator[Path]:
        """Older runs that have ended but are not closed, in the order in which they began."""
        for path in reversed(open_folders(self._out, self._bundle.sha256)[1:]):
            try:
                if self._is_to_follow(path) and has_ended(path):
                    yield path
            except RecordError as error:
                _log.warning("%s", error)

    def _is_to_follow(self, path: Path) -> bool:
        """Whether the run in a folder is open, and is not one that could not be decoded."""
        try:
            info = read_run_file(path)
        except RecordError:
            return False
        return info.state == "open" and (path, info.opened_utc) not in self._damaged

    async def _follow(self, path: Path) -> None:
        try:
            run = open_run(path, self._bundle, self._engine, self._faces, carry=self._carry)
        except RecordError as error:  # a full disk may have room again
            if str(error) != self._message:
                self._tell(str(error))
            await asyncio.sleep(BEAT_S)
            return
        self._run, self._is_open = run, True
        self._following = Following(
            run,
            self._decoding,
            news=self._wait,
            send=self._send,
            changed=self._changed,
            is_current=lambda: self._recording.run_folder in (None, str(path)),
        )
        self._changed()
        is_damaged = is_unclosed = False
        try:
            is_closed = await self._following.follow()
        except RealtimeError as error:
            _log.error("%s", error)
            run.message, is_closed = str(error), False
            is_unclosed = run.end is not None  # the disk does not take its end, and may do so later
            is_damaged = not is_unclosed
        self._is_open = False
        if is_damaged:
            self._damaged.add((path, run.folder.info.opened_utc))
        if is_closed:
            self._after_run.take(path, is_closed=True)
        else:
            run.folder.let_go()
        is_whole = is_closed and run.end is not None and run.end.reason == "complete"
        self._tell("the run is complete; waiting for the next" if is_whole else run.message)
        if is_unclosed:
            await asyncio.sleep(BEAT_S)

    async def _wait(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            # asyncio.wait_for would swallow a cancellation that comes together with the news.
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        self._news.clear()

    # What the recorder says

    async def _hear(self, heard: Heard) -> None:
        while True:
            message = await heard.receive()
            if not isinstance(message, Recording):
                continue
            before, self._recording = self._recording, message
            self._news.set()
            if message.alarm != before.alarm or (message.message != before.message and message.message):
                self._tell(message.message)

    # What listeners are told

    def _state(self) -> State:
        run = self._run
        silent_s = time.perf_counter() - run.heard_s if run else 0.0
        return run_state(run, is_open=self._is_open, silent_s=silent_s)

    def _tell(self, message: str) -> None:
        self._message = message
        if self._run and self._is_open:
            self._run.message = message
        self._send_status()

    def _tell_of_sealing(self, message: str | None) -> None:
        if message and not self._is_open:
            self._tell(message)
        else:
            self._send_status()

    def _changed(self) -> None:
        if self._run and self._run.message:
            self._message = self._run.message
        self._send_status()

    def _send_status(self) -> None:
        spec, sha256 = self._bundle.spec, self._bundle.sha256
        run_alarm, is_demo = self._run.alarm if self._run else "", self._is_demo
        alarm = self._recording.alarm or run_alarm or self._after_run.alarm
        status = status_of(self._run, self._state(), self._message, alarm, spec, sha256, is_demo=is_demo)
        self._send(Event(status))

    def _send(self, event: Event) -> None:
        if self._publisher:
            self._publisher.take(event)
        self._channel.send_event(event)

    def _beat(self) -> None:
        self._send_status()
        if self._publisher:
            messages = self._publisher.published.total()
            self._channel.send(Publishing(messages=messages, overruns=self._publisher.overruns))
