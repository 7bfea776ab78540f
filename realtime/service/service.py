"""A runtime as a whole: a bundle on an engine, a source of volumes, the pipeline, the page."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from realtime.bundle.bundle import Bundle
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_and_use
from realtime.decoding.engines.contract import Engine
from realtime.decoding.faces import FaceBlur
from realtime.errors import ServeError
from realtime.events import Broadcast
from realtime.network.curve import ServerKeys, load_server_keys, own_server_keys
from realtime.network.publish import Publisher
from realtime.runs.pipeline import Pipeline, Settings
from realtime.runs.resume import unfinished_run
from realtime.sources.open import SourceOptions, open_source

if TYPE_CHECKING:
    from realtime.viewer import Viewer

SEED = 0
"""Of the initial noise: the same for every run, so that what changes on screen is the brain."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to serve."""

    bundle: Path
    bundle_is_demo: bool
    source: str
    """Where volumes come from, such as ``tcp://127.0.0.1:5555``; port 0 takes a free one."""
    port: int | None
    """The page's port, 0 for a free one; None: no page."""
    out: Path
    engine: str = "auto"
    """One of :data:`realtime.decoding.engines.choose.ENGINES`."""
    sampler: str | None = None
    """The bundle's sampler to decode with; by default the best for which there is time."""
    show_faces: bool = False
    """Leave faces in the frames as they are; by default they are blurred on the page and in every output."""
    keys: Path | None = None
    """The runtime's folder of :func:`realtime.network.curve.make_keys`; without it, the keys
    of :func:`realtime.network.curve.own_server_keys`."""
    publish: str | None = None
    """Where frames are published, such as ``tcp://127.0.0.1:5556``; None: nowhere."""
    page_host: str = "127.0.0.1"
    """IP address of the page; any but loopback needs a certificate."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    source_options: SourceOptions = SourceOptions()
    """What the operator says about runs, for sources that do not."""
    carry: bool = False
    """Whether runs begin with the statistics of the run before."""


class Service:
    """All parts of a runtime, from :meth:`start` to :meth:`stop`.

    :raises RealtimeError: when the bundle or an address is not valid, or a graph does not run here
    """

    def __init__(self, options: Options) -> None:
        keys = _keys(options)
        page = None if options.port is None else _page(options, options.port)
        self.bundle = Bundle.open(options.bundle)
        unfinished = unfinished_run(options.out, self.bundle.sha256)
        self._source = open_source(
            options.source, options.source_options, self.bundle.spec, keys=keys, unfinished=unfinished
        )
        sampler = self.bundle.sampler(options.sampler) if options.sampler else None
        blur = None if options.show_faces else FaceBlur()

        def decoders(engine: Engine) -> list[Decoder]:
            return [Decoder(self.bundle, engine, SEED, each.name, blur) for each in self.bundle.spec.decoders]

        worker = ThreadPoolExecutor(1, thread_name_prefix="decode")
        with _ended_by_ctrl_c():
            engine_name, engine, made = worker.submit(
                open_and_use, self.bundle, options.engine, decoders
            ).result()
        self.engine_description = engine.description
        self.closed: asyncio.Queue[Path] = asyncio.Queue()
        """The folders of runs that have ended."""
        settings = Settings(
            bundle=self.bundle,
            bundle_is_demo=options.bundle_is_demo,
            engine=engine.description,
            engine_name=engine_name,
            sampler=sampler,
            seed=SEED,
            faces="shown" if options.show_faces else "blurred",
            carry=options.carry,
            out=options.out.absolute(),
        )
        self.pipeline = Pipeline(settings, self._source, made, self.closed.put_nowait, worker)
        self.publisher = None
        if options.publish:
            self.publisher = Publisher(options.publish, keys)
            self.pipeline.broadcast.call(self.publisher.take)
        self._viewer = page(self.pipeline.broadcast, self.publisher) if page else None
        self.source_address = ""
        self.publish_address: str | None = None
        self.url: str | None = None

    async def start(self) -> None:
        """Begin to listen.

        :raises ServeError: when a port is in use
        """
        async with contextlib.AsyncExitStack() as started:
            self.source_address = await self._source.start()
            started.push_async_callback(self._source.stop)
            if self.publisher:
                self.publish_address = self.publisher.start()
                started.callback(self.publisher.stop)
            self.url = await self._viewer.start() if self._viewer else None
            started.pop_all()

    async def stop(self, *, end_run: bool) -> Path | None:
        """Stop every part, whatever fails; returns the folder of the run that was open, if any."""
        async with contextlib.AsyncExitStack() as stopping:  # the last first
            if self.publisher:
                stopping.callback(self.publisher.stop)
            stopping.push_async_callback(self._source.stop)
            if self._viewer:
                stopping.push_async_callback(self._viewer.stop)
            folder = self.pipeline.stop(end_run=end_run)
        return folder


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once, without waiting for an engine that loads on another thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _keys(options: Options) -> ServerKeys | None:
    """The keys, if there is a port that needs them: the user's own unless others are named."""
    ports = (options.source, options.source_options.markers, options.publish)
    if any(port and port.startswith("tcp:") for port in ports):
        return load_server_keys(options.keys) if options.keys else own_server_keys()
    if options.keys is None:
        return None
    raise ServeError(
        f"expected no --keys with {options.source} and without --publish or --markers at tcp://: keys are "
        "for scanners at tcp://, presentation software and subscribers, and none of these can connect here"
    )


def _page(options: Options, port: int) -> Callable[[Broadcast, Publisher | None], Viewer]:
    """Check that the page may listen at its address; returns a function that makes it, with its metrics."""
    # A headless runtime needs neither WebRTC nor Prometheus.
    from realtime.viewer import Viewer, open_access
    from realtime.viewer.prometheus import Metrics

    access = open_access(options.page_host, options.tls_cert, options.tls_key)

    def make(broadcast: Broadcast, publisher: Publisher | None) -> Viewer:
        metrics = Metrics(publisher)
        broadcast.call(metrics.take)
        return Viewer(broadcast, port, access, metrics)

    return make


def open_page(url: str) -> None:
    """Open the page in the user's browser, if there is a screen."""
    has_screen = sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if has_screen:
        webbrowser.open(url)


@contextlib.contextmanager
def interrupts() -> Iterator[asyncio.Event]:
    """An event that is set by Ctrl-C or SIGTERM, in place of a KeyboardInterrupt. In a running loop."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stop.set)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
