"""What a volume passes from socket to picture, as the page on the architecture says it."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import realtime
from realtime.bundle.bundle import Bundle
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine
from realtime.events import Event, Recording
from realtime.record.run_json import EngineUsed
from realtime.recorder.recorder import Recorder, Settings
from realtime.runs.decode_loop import ByDeadline, DecodeLoop
from realtime.runs.follow import Following
from realtime.runs.open import open_run
from realtime.sources.zeromq import ZeroMqSource

from .conftest import Client, Scan

PATIENCE_S = 120.0
ROOT = Path(realtime.__file__).parent
ARCHITECTURE = Path(__file__).parents[3] / "docs" / "architecture.md"
VOCABULARY = {"errors.py", "events.py", "spec.py", "run_json.py"}
"""What all rooms speak in: it passes nothing on."""


class Passed:
    """The files of the runtime whose functions are entered in threads that :meth:`trace` is set in."""

    def __init__(self) -> None:
        self.files: set[Path] = set()
        self.is_on = False

    def trace(self, frame: FrameType, event: str, argument: object) -> None:
        """As :func:`sys.setprofile` calls it."""
        file = Path(frame.f_code.co_filename)
        if self.is_on and event == "call" and file.is_relative_to(ROOT):
            self.files.add(file.relative_to(ROOT.parent))


def named_on_the_way() -> tuple[list[str], set[str]]:
    """The files of the numbered steps, and the names of all files that the section speaks of."""
    way = ARCHITECTURE.read_text().partition("\n## The way of a volume\n")[2].partition("\nFrom there, ")[0]
    steps = re.findall(r"^\d+\. \*\*`([\w/.]+)`\*\*", way, flags=re.MULTILINE)
    return steps, {Path(name).name for name in re.findall(r"`([\w/]+\.py)`", way)}


def test_a_volume_passes_the_files_that_the_page_names_and_no_others(
    tiny_bundle: Path, tmp_path: Path, make_scan: type[Scan], connect: Callable[[str], Client]
) -> None:
    bundle, scan, passed = Bundle.open(tiny_bundle), make_scan(n_volumes=40), Passed()
    last = bundle.window_volumes + 1
    sockets = tmp_path / "s"
    sockets.mkdir(mode=0o700)
    news = asyncio.Event()
    frames: asyncio.Queue[int] = asyncio.Queue()

    def tell(recording: Recording) -> None:
        news.set()

    def send(event: Event) -> None:
        passed.is_on = False
        frames.put_nowait(event.message.volume)  # type: ignore[union-attr, arg-type]

    async def wait(timeout_s: float) -> None:
        await news.wait()
        news.clear()

    async def follow(folder: Path) -> None:
        decoders = [Decoder(bundle, open_engine(bundle, "onnxruntime-cpu", threads=1))]
        worker = ThreadPoolExecutor(1, initializer=sys.setprofile, initargs=(passed.trace,))
        loop = DecodeLoop(decoders, ByDeadline(decoders, bundle.spec.samplers, None), send, worker)
        run = open_run(folder, bundle, EngineUsed(name="onnxruntime-cpu"), "blurred")
        following = Following(run, loop, news=wait, send=send, changed=lambda: None, is_current=lambda: True)
        try:
            await following.follow()
        finally:
            await following.stop()
            loop.stop()
            run.folder.let_go()

    async def check() -> None:
        source = ZeroMqSource(f"ipc://{sockets}/volumes")
        settings = Settings(spec=bundle.spec, bundle_sha256=bundle.sha256, seed=0, out=tmp_path)
        recorder = Recorder(settings, source, tell)
        client = connect(await source.start())

        async def ask(index: int) -> None:
            await asyncio.to_thread(client.ask, scan.volume(index), scan.voxels(index).tobytes())

        tasks = [asyncio.create_task(recorder.run())]
        try:
            await asyncio.to_thread(client.ask, scan.start)
            tasks.append(asyncio.create_task(follow(tmp_path / scan.run_id)))
            for index in range(last):
                await ask(index)
            while await asyncio.wait_for(frames.get(), PATIENCE_S) < last - 1:
                pass
            passed.is_on = True
            await ask(last)
            assert await asyncio.wait_for(frames.get(), PATIENCE_S) == last
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            recorder.stop()
            await source.stop()

    sys.setprofile(passed.trace)
    try:
        asyncio.run(check())
    finally:
        sys.setprofile(None)
    steps, named = named_on_the_way()
    assert set(steps) <= {path.as_posix() for path in passed.files}
    engine = Path("realtime/decoding/engines")
    unnamed = {path for path in passed.files if path.name not in named | VOCABULARY and path.parent != engine}
    assert unnamed == set()
