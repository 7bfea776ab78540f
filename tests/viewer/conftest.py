"""Synthetic runs, a served viewer, and a headless Chromium to look at its page.

A test elsewhere that looks at the page of another process needs only ``open_page`` and ``video_mean_rgb``.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Page, expect, sync_playwright

from realtime.events import (
    Broadcast,
    Counts,
    DecoderUsed,
    Event,
    Frame,
    LatencyMs,
    Motion,
    Quality,
    Shown,
    Status,
)
from realtime.viewer.server import Viewer

PATIENCE_MS = 240_000
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-loopback-in-peer-connection",
    # The browser's own addresses are shown to the test as they are, not as mDNS names.
    "--disable-features=WebRtcHideLocalIpsWithMdns",
)
# Lets a test ask the page's connections for their statistics.
_REMEMBER_CONNECTIONS = """
const Original = window.RTCPeerConnection;
window.connections = [];
window.RTCPeerConnection = class extends Original {
  constructor(...settings) { super(...settings); window.connections.push(this); }
};
"""
_MEAN_RGB = """source => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 64;
  const pen = canvas.getContext("2d");
  pen.drawImage(source, 0, 0, 64, 64);
  const { data } = pen.getImageData(0, 0, 64, 64);
  const sum = [0, 0, 0];
  for (let i = 0; i < data.length; i += 1) if (i % 4 < 3) sum[i % 4] += data[i];
  return sum.map(value => value / 4096);
}"""

MOTION = Motion(
    trans_x=0, trans_y=0.1, trans_z=-0.2, rot_x=0, rot_y=0.01, rot_z=0, framewise_displacement=0.25, rmsd=0.2
)


class SyntheticRun:
    """Events as the pipeline sends them, with pictures of a known colour."""

    def __init__(self, run_id: str = "sub-01_ses-nsd01_task-nsdcore_run-01", planned: int = 225) -> None:
        self.run_id = run_id
        self.planned = planned

    def status(self, state: str, volume: int | None = None, **changes: Any) -> Event:
        received = 0 if volume is None else volume + 1
        counts = Counts(planned=self.planned, received=received, decoded=received // 2, warming=received // 3)
        facts: dict[str, Any] = {
            "state": state,
            "run_id": self.run_id,
            "subject": 1,
            "volume": volume,
            "counts": counts,
            "tr_s": 4 / 3,
            "decode_delay_s": 12.0,
            "bundle_name": "demo-bundle",
            "bundle_sha256": "5a" * 32,
            "bundle_is_demo": True,
            "decoders": (DecoderUsed(name="general", window_delay_volumes=8),),
            "run_folder": f"/data/runs/{self.run_id}",
            "quality": None if volume is None else Quality(volume=volume, motion=MOTION, dvars=12.5, tsnr=48),
            "message": "",
        }
        return Event(Status(**(facts | changes)))

    def frame(self, volume: int, rgb: tuple[int, int, int] = (90, 120, 150), **changes: Any) -> Event:
        facts: dict[str, Any] = {
            "run_id": self.run_id,
            "volume": volume,
            "decoder": "general",
            "window": (volume - 5, volume + 1),
            "state": "warming" if volume < 30 else "trusted",
            "sampler": "ddim-20",
            "latency_ms": latency(denoise=150.0 + volume),
            "shown_onset": None,
        }
        return Event(Frame(**(facts | changes)), image=picture(rgb))

    def shown(self, onset: int, name: str, rgb: tuple[int, int, int]) -> Event:
        bgr = np.ascontiguousarray(picture(rgb)[:, :, ::-1])
        png = cv2.imencode(".png", bgr)[1].tobytes()
        return Event(Shown(run_id=self.run_id, onset_volume=onset, name=name), png=png)


def latency(denoise: float) -> LatencyMs:
    rest = {"journal": 1.5, "preprocess": 4.0, "wait": 0.5, "brain": 10.0, "vae": 20.0}
    return LatencyMs(denoise=denoise, total=sum(rest.values()) + denoise, **rest)


def picture(rgb: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A 64 x 64 picture of about that colour, with a gradient so that no frame is flat."""
    ramp = np.linspace(-20, 20, 64)[:, None, None]
    exact: NDArray[np.float64] = np.clip(np.broadcast_to(ramp + np.array(rgb), (64, 64, 3)), 0, 255)
    return exact.astype(np.uint8)


@pytest.fixture
def run() -> SyntheticRun:
    return SyntheticRun()


@pytest.fixture(scope="session")
def make_run() -> type[SyntheticRun]:
    return SyntheticRun


def serve_and_check(
    status: Event, check: Callable[[aiohttp.ClientSession, Broadcast], Coroutine[Any, Any, None]]
) -> None:
    async def serve() -> None:
        assert isinstance(status.message, Status)
        broadcast = Broadcast(status.message)
        viewer = Viewer(broadcast, 0)
        base, token = (await viewer.start()).split("?token=")
        brings = {"Authorization": f"Bearer {token}"}
        try:
            async with aiohttp.ClientSession(base, headers=brings) as session:
                await check(session, broadcast)
        finally:
            await viewer.stop()

    asyncio.run(serve())


@pytest.fixture
def with_viewer() -> Any:
    """``with_viewer(status_event, check)`` awaits ``check(session, broadcast)`` on the viewer."""
    return serve_and_check


class Served:
    """A viewer in a thread of its own, as the runtime's event loop is to a browser."""

    def __init__(self, status: Event, port: int = 0, **options: Any) -> None:
        assert isinstance(status.message, Status)
        self.broadcast = Broadcast(status.message)
        self._viewer = Viewer(self.broadcast, port, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.url: str = self._call(self._viewer.start())
        self.base, self.token = self.url.split("?token=")
        self.port = urlsplit(self.url).port

    def send(self, *events: Event) -> None:
        for event in events:
            self._loop.call_soon_threadsafe(self.broadcast.send, event)

    def stop(self) -> None:
        if self._loop.is_closed():
            return
        self._call(self._viewer.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """``serve(status_event, port=0, **options_of_the_viewer) -> Served``; stopped at the end."""
    started: list[Served] = []

    def start(status: Event, port: int = 0, **options: Any) -> Served:
        started.append(Served(status, port, **options))
        return started[-1]

    yield start
    for served in started:
        served.stop()


@pytest.fixture
def open_page(tmp_path: Path, chromium: str) -> Iterator[Callable[..., Page]]:
    """``open_page(url, flags=(), init_script="") -> Page`` in a fresh headless Chromium.

    The test fails at its end if the page raised an error or ran into its own security policy.
    """
    expect.set_options(timeout=PATIENCE_MS)
    playwright = sync_playwright().start()
    contexts: list[Any] = []
    complaints: list[str] = []

    def note(message: Any) -> None:
        if "Content Security Policy" in message.text:
            complaints.append(message.text)

    def start(url: str, *, flags: tuple[str, ...] = (), init_script: str = "") -> Page:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / f"profile-{len(contexts)}",
            executable_path=chromium,
            headless=True,
            args=[*CHROMIUM_FLAGS, *flags],
            viewport={"width": 1280, "height": 800},
            timeout=PATIENCE_MS,
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.pages[0]
        page.add_init_script(init_script or _REMEMBER_CONNECTIONS)
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url, timeout=PATIENCE_MS)
        return page

    try:
        yield start
    finally:
        for context in contexts:
            context.close()
        playwright.stop()
    assert complaints == []


@pytest.fixture
def mean_rgb() -> Callable[[Page, str], NDArray[np.float64]]:
    """``mean_rgb(page, selector)``: mean colour of what a video, canvas or image element shows."""

    def measure(page: Page, selector: str) -> NDArray[np.float64]:
        return np.array(page.locator(selector).evaluate(_MEAN_RGB))

    return measure


@pytest.fixture
def video_mean_rgb(
    mean_rgb: Callable[[Page, str], NDArray[np.float64]],
) -> Callable[[Page], NDArray[np.float64]]:
    """``video_mean_rgb(page)``: mean colour of the live video's newest frame; zeros before the first."""
    return lambda page: mean_rgb(page, "video")


@pytest.fixture
def until() -> Callable[[Page, Callable[[], bool], str], None]:
    """``until(page, condition, what)``: look again, while the page goes on, until it holds."""

    def wait(page: Page, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + PATIENCE_MS / 1000
        while not condition():
            if time.monotonic() > deadline_s:
                pytest.fail(f"waited {PATIENCE_MS / 1000:.0f} s in vain for {what}")
            page.wait_for_timeout(50)

    return wait
