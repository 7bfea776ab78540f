"""The page as a process: a listener like any other, with a web server."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from realtime.bundle.match import read_spec
from realtime.errors import RecordError
from realtime.events import Broadcast, Event, Frame, Publishing, Recording, Shown, Status
from realtime.network.channel import BEAT_S, SILENT_S, Heard, listening
from realtime.record.past import past_events
from realtime.runs.status import status_of
from realtime.service.process import Ready, every, say_ready, set_budget, until_stopped
from realtime.viewer.access import open_access
from realtime.viewer.prometheus import Metrics
from realtime.viewer.server import Viewer

DECODER_STARTS_S = 60.0
"""Time for the decoder to be heard for the first time: it opens its engine."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to show the page."""

    bundle: Path
    bundle_is_demo: bool
    out: Path
    port: int
    """0 for a free one."""
    page_host: str = "127.0.0.1"
    """IP address of the page; any but loopback needs a certificate."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token: str | None = None
    """What the page asks of a browser; by default a new one."""
    is_supervised: bool = False


def page(options: Options) -> None:
    """Show the page until Ctrl-C.

    :raises RealtimeError: when it cannot start
    """
    set_budget("page")
    asyncio.run(_page(options))


async def _page(options: Options) -> None:
    service = PageService(options)
    access = open_access(options.page_host, options.tls_cert, options.tls_key, options.token)
    metrics = Metrics(lambda: service.publishing)
    service.broadcast.call(metrics.take)
    viewer = Viewer(service.broadcast, options.port, access, metrics)
    url = await viewer.start()
    try:
        say_ready(Ready(lines=[f"page: {url}"], address=url), is_supervised=options.is_supervised)
        await until_stopped(service.run(), is_supervised=options.is_supervised)
    finally:
        await viewer.stop()


class PageService:
    """Fills a broadcast with what recorder and decoder send, and with what is in the run folder."""

    def __init__(self, options: Options) -> None:
        spec, sha256 = read_spec(options.bundle)
        self._out = options.out.absolute()
        message = "the decoder is starting"
        self._status = status_of(None, "waiting", message, "", spec, sha256, is_demo=options.bundle_is_demo)
        self._recording = Recording()
        self._began_s = time.monotonic()
        self._heard_s: dict[str, float] = {}
        """When each process was heard last, by ``time.monotonic``."""
        self._is_reading = False
        """Whether this process reads a run folder, and hears no decoder meanwhile."""
        self.publishing: Publishing | None = None
        self.broadcast = Broadcast(self._status)

    async def run(self) -> None:
        """Listen until cancelled."""
        async with (
            listening(self._out, "recorder") as recorder,
            listening(self._out, "decoder") as decoder,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self._hear_recorder(recorder))
            tasks.create_task(self._hear_decoder(decoder))
            tasks.create_task(every(BEAT_S, self._show_status))

    async def _hear_recorder(self, heard: Heard) -> None:
        while True:
            message = await heard.receive()
            self._heard_s["recorder"] = time.monotonic()
            if isinstance(message, Recording):
                is_news = message.alarm != self._recording.alarm
                self._recording = message
                if is_news:
                    self._show_status()

    async def _hear_decoder(self, heard: Heard) -> None:
        missed = 0
        while True:
            message = await heard.receive()
            self._heard_s["decoder"] = time.monotonic()
            if isinstance(message, Publishing):
                self.publishing = message
            elif isinstance(message, Event) and isinstance(message.message, Status):
                is_other = message.message.run_folder != self.broadcast.status.run_folder
                self._status = message.message
                self._show_status()
                if (is_other or heard.missed != missed) and self._status.run_folder:
                    missed = heard.missed
                    await self._show_past(Path(self._status.run_folder))
            elif isinstance(message, Event):
                self.broadcast.send(message)

    async def _show_past(self, folder: Path) -> None:
        """Show what was decoded before this page listened, or was lost on the way here."""
        self._is_reading = True
        try:
            events = past_events(folder)  # one after the other, so that SIGTERM waits for one only
            while event := await asyncio.to_thread(next, events, None):
                if not self._is_known(event):
                    self.broadcast.send(event)
        except RecordError as error:
            _log.info("cannot read what was decoded so far: %s", error)
        finally:
            self._is_reading = False
            self._heard_s["decoder"] = time.monotonic()

    def _is_known(self, event: Event) -> bool:
        message = event.message
        if isinstance(message, Frame):
            return (message.volume, message.decoder) in self.broadcast.frames
        return isinstance(message, Shown) and message.onset_volume in self.broadcast.shown

    def _show_status(self) -> None:
        alarm = self._silence() or self._recording.alarm or self._status.alarm
        status = msgspec.structs.replace(self._status, alarm=alarm)
        if status != self.broadcast.status:
            self.broadcast.send(Event(status))

    def _silence(self) -> str:
        """Which process does not answer, and what that means."""
        if self._silent_s("recorder") > SILENT_S:
            return "the recorder does not answer: no volume is recorded"
        patience_s = SILENT_S if "decoder" in self._heard_s else DECODER_STARTS_S
        if self._silent_s("decoder") > patience_s and not self._is_reading:
            return "the decoder does not answer: volumes are recorded, and will be decoded once it is back"
        return ""

    def _silent_s(self, role: str) -> float:
        return time.monotonic() - self._heard_s.get(role, self._began_s)
