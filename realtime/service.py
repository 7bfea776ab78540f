"""A runtime as a whole: a bundle on an engine, a source of volumes, the pipeline, the page."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from realtime.bundle import SPEC_FILE, Bundle
from realtime.decode import Decoder
from realtime.engines import take_engine
from realtime.errors import ServeError
from realtime.events import Broadcast
from realtime.pipeline import Pipeline, Settings
from realtime.sources.zeromq import ZeroMqSource

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
    """``tcp://127.0.0.1:5555``; port 0 takes a free one."""
    port: int | None
    """The page's port, 0 for a free one; None: no page."""
    out: Path
    engine: str = "auto"
    """One of :data:`realtime.engines.ENGINES`."""
    sampler: str | None = None
    """The bundle's sampler to decode with; by default the best for which there is time."""
    carry: bool = False
    """Whether runs begin with the statistics of the run before."""


class Service:
    """Everything that serves, from :meth:`start` to :meth:`stop`.

    :raises RealtimeError: when the bundle or the source address is not good, or a graph does not run here.
    """

    def __init__(self, options: Options) -> None:
        self._source = ZeroMqSource(options.source)
        self.bundle = Bundle.open(options.bundle)
        sampler = self.bundle.sampler(options.sampler) if options.sampler else None
        engine_name, engine = take_engine(self.bundle, options.engine)
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
            carry=options.carry,
            out=options.out.absolute(),
        )
        decoder = Decoder(self.bundle, engine, SEED)
        self.pipeline = Pipeline(settings, self._source, decoder, self.closed.put_nowait)
        self._viewer = None if options.port is None else _viewer(self.pipeline.broadcast, options.port)
        self.source_address = ""
        self.url: str | None = None

    async def start(self) -> None:
        """Listen. :raises ServeError: where a port is in use."""
        self.source_address = await self._source.start()
        try:
            self.url = await self._viewer.start() if self._viewer else None
        except ServeError:
            await self._source.stop()
            raise

    async def stop(self, *, end_run: bool) -> Path | None:
        """Let go of everything; returns the folder of the run that was open, if any."""
        folder = self.pipeline.stop(end_run=end_run)
        if self._viewer:
            await self._viewer.stop()
        await self._source.stop()
        return folder


def _viewer(broadcast: Broadcast, port: int) -> Viewer:
    from realtime.viewer import Viewer  # brings WebRTC, which a headless runtime does not need

    return Viewer(broadcast, port)


def choose_bundle(folder: Path | None, subject: int | None) -> tuple[Path, bool]:
    """The bundle to serve and whether it is the shipped demo's.

    Without ``folder``: the subject's under ``./bundles``, else the demo's where it is of that subject.

    :raises ServeError: when there is none for the subject; BundleError: when what there is cannot be read.
    """
    found = folder or Path("bundles") / f"sub-{subject or 1:02d}"
    is_demo = folder is None and not (found / SPEC_FILE).is_file()
    chosen = demo_data("bundle") if is_demo else found
    if subject is not None:
        of = Bundle.open(chosen).spec.subject
        if of != subject:
            looked = f" (there is none of subject {subject} in {found})" if is_demo else ""
            raise ServeError(
                f"expected a bundle of subject {subject}, got one of subject {of}: {chosen}{looked}; "
                "export one, or give its folder as --bundle"
            )
    return chosen, is_demo


def demo_data(name: str) -> Path:
    """A folder of the shipped demo: ``bundle`` or ``nsd``.

    :raises ServeError: where this installation does not have it.
    """
    folder = Path(str(resources.files("realtime"))) / "demo_data" / name
    if not folder.is_dir():
        raise ServeError(
            f"expected the shipped demo's data in {folder}, found none; install a release, or give --bundle"
        )
    return folder


def open_page(url: str) -> None:
    """Show the page in the user's browser, where there is a screen to show it on."""
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
