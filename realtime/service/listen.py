"""Listens to what comes from a scanner and from presentation software, and records nothing.

It listens with the code that the recorder listens with. No volume is acknowledged, so a sender of this
project's own messages keeps them all, and sends them again to the runtime that is started next. Senders that
wait for an answer to each volume are told at the end that nothing was recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from realtime import wire
from realtime.bundle.spec import Spec
from realtime.errors import ServeError, WireError
from realtime.network.key_files import ServerKeys
from realtime.sources import Received, Source
from realtime.sources.open import SourceOptions, open_markers, open_volumes
from realtime.sources.zeromq import ZeroMqSource

ENOUGH_VOLUMES = 3
"""So many show the pace. A sender that waits for an answer to each sends one."""
PATIENCE_TR = 3
"""For another volume after the first ones."""
_MOST_SAID = 20


@dataclass
class Heard:
    """What came."""

    address: str
    """Where it listened; as it was given, where it could not."""
    listened_s: float = 0.0
    start: wire.RunStart | None = None
    first: tuple[wire.Volume, bytes] | None = None
    arrivals_s: dict[int, float] = field(default_factory=dict)
    """Of each volume, by index; one that came again counts once."""
    markers_at: str = ""
    markers: list[tuple[int, str]] = field(default_factory=list)
    """Onset volume and name."""
    said: list[str] = field(default_factory=list)
    """What sources have logged: refusals, and what they pass over. Each line once."""
    problems: list[str] = field(default_factory=list)
    unanswered: Received | None = None
    """The newest volume."""

    def take(self, received: Received) -> wire.ToScanner | None:
        """Note a message; returns what is answered now."""
        message = received.message
        if isinstance(message, wire.RunStart):
            self.start = message
            return wire.RunAccepted(run_id=message.run_id, held=[])
        if isinstance(message, wire.Volume):
            self._take_volume(message, received)
            return None
        if isinstance(message, wire.Marker):
            self.markers.append((message.onset_volume, message.name))
        return _refused(message)

    def _take_volume(self, message: wire.Volume, received: Received) -> None:
        self.unanswered = received
        try:
            wire.verify_checksum(message, received.payload)
        except WireError as error:
            self.problems.append(f"volume {message.index}: {error}")
            return
        if self.first is None:
            self.first = message, bytes(received.payload)
        self.arrivals_s.setdefault(message.index, received.received_s)

    @property
    def patience_s(self) -> float | None:
        """How long to wait for another volume; None: as long as there is time."""
        if self.start is None or not self.arrivals_s:
            return None
        return 0.0 if len(self.arrivals_s) >= ENOUGH_VOLUMES else PATIENCE_TR * self.start.tr_s


async def listen(
    address: str,
    options: SourceOptions,
    spec: Spec,
    keys: ServerKeys | None,
    wait_s: float,
    tell: Callable[[str], None],
) -> Heard:
    """Listen until some volumes came, and a marker if a port of markers is among the options.

    :param wait_s: for all of it, at most
    :param tell: told where it listens, once it does
    :raises ServeError: when the address or an option is malformed
    """
    heard = Heard(address)
    source = open_volumes(address, options, spec, keys=keys)
    markers = open_markers(options.markers, options, keys) if options.markers else None
    began_s = time.perf_counter()
    with _said_by_sources(heard.said):
        async with contextlib.AsyncExitStack() as stack:
            try:
                heard.address = await stack.enter_async_context(_started(source))
                if markers:
                    heard.markers_at = await stack.enter_async_context(_started(markers))
            except ServeError as error:
                heard.problems.append(str(error))
                return heard
            also = f", to markers at {heard.markers_at}" if markers else ""
            tell(f"listening to {heard.address}{also}, for at most {wait_s:g} s: start a test scan now")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await _hear(heard, source, markers)
            if heard.unanswered and not isinstance(source, ZeroMqSource):
                await heard.unanswered.reply(_refused(heard.unanswered.message))
    heard.listened_s = time.perf_counter() - began_s
    return heard


async def _hear(heard: Heard, source: Source, markers: Source | None) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_hear_volumes(heard, source))
        if markers:
            tasks.create_task(_hear_marker(heard, markers))


async def _hear_volumes(heard: Heard, source: Source) -> None:
    while heard.patience_s != 0:
        try:
            async with asyncio.timeout(heard.patience_s):
                received = await source.receive()
        except TimeoutError:
            return
        if answer := heard.take(received):
            await received.reply(answer)


async def _hear_marker(heard: Heard, markers: Source) -> None:
    while not heard.markers:
        received = await markers.receive()
        answer = heard.take(received) if isinstance(received.message, wire.Marker) else None
        await received.reply(answer or _refused(received.message))


def _refused(message: wire.ToRuntime) -> wire.Refused:
    index = message.index if isinstance(message, wire.Volume) else None
    text = "realtime doctor has heard it and records nothing; start the runtime"
    return wire.Refused(run_id=message.run_id, code="preflight", message=text, index=index)


@contextlib.asynccontextmanager
async def _started(source: Source) -> AsyncIterator[str]:
    address = await source.start()
    try:
        yield address
    finally:
        await source.stop()


@contextlib.contextmanager
def _said_by_sources(said: list[str]) -> Iterator[None]:
    """Collect what is logged meanwhile."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage()
            if line not in said and len(said) < _MOST_SAID:
                said.append(line)

    logger, collector = logging.getLogger("realtime"), Collector(logging.INFO)
    before = logger.level, logger.propagate
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(collector)
        logger.level, logger.propagate = before
