"""Recorder and decoder in this process, each with its channel, while somebody harms the run."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.decoding.open import open_decoders
from realtime.errors import RecordError
from realtime.network.channel import ChannelSender
from realtime.record.folder import RunFolder
from realtime.record.journal import JOURNAL
from realtime.record.reader import read_recorded
from realtime.record.run_json import read_run_file
from realtime.recorder.recorder import Recorder, Settings
from realtime.service.decode import DecoderService, Options

from .conftest import Scan
from .in_process import QueueSource

PATIENCE_S = 30.0


class Bench:
    """A recorder and a decoder that hear each other."""

    def __init__(self, out: Path, source: QueueSource) -> None:
        self.out = out
        self._source = source

    async def volumes(self, scan: Scan, indices: range) -> None:
        for index in indices:
            reply = await self._source.ask(scan.volume(index), scan.voxels(index).tobytes())
            assert reply == wire.Ack(run_id=scan.run_id, index=index)

    async def ask(self, message: wire.ToRuntime, buffer: bytes = b"") -> wire.ToScanner:
        return await self._source.ask(message, buffer)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(RecordError):  # a folder that is not there, or not yet whole
                    if condition():
                        return
                await asyncio.sleep(0.02)

    def has_row(self, scan: Scan, volume: int) -> bool:
        return any(row.volume == volume for row in read_recorded(self.out / scan.run_id).rows)

    def is_closed(self, scan: Scan) -> bool:
        return read_run_file(self.out / scan.run_id).state == "closed"


@asynccontextmanager
async def bench(folder: Path, out: Path) -> AsyncIterator[Bench]:
    out.mkdir(exist_ok=True)
    bundle, source = Bundle.open(folder), QueueSource()
    opened = open_decoders(bundle, "onnxruntime-cpu", 0, blurs_faces=False)
    options = Options(bundle=folder, bundle_is_demo=False, out=out, show_faces=True)
    settings = Settings(spec=bundle.spec, bundle_sha256=bundle.sha256, seed=0, out=out)
    with ChannelSender(out, "recorder") as recording, ChannelSender(out, "decoder") as decoding:
        recorder = Recorder(settings, source, recording.send)
        service = DecoderService(options, bundle, opened, decoding, None)

        async def beat() -> None:
            while True:
                recording.send(recorder.recording)
                await asyncio.sleep(0.1)

        tasks = [asyncio.create_task(work) for work in (recorder.run(), service.run(), beat())]
        try:
            yield Bench(out, source)
            assert not any(task.done() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            recorder.stop()
            await service.stop()


@pytest.fixture(autouse=True)
def runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def scan(make_scan: type[Scan]) -> Scan:
    return make_scan(n_volumes=24)


@pytest.mark.parametrize("harm", ["deleted", "cut"])
def test_a_run_is_decoded_to_its_end_whatever_happened_to_its_folder(
    tiny_bundle: Path, scan: Scan, tmp_path: Path, harm: str
) -> None:
    """The recorder goes on in a new folder of the same name, or behind what is left of the journal."""

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path / "out") as one:
            await one.ask(scan.start)
            await one.volumes(scan, range(10))
            await one.until(lambda: one.has_row(scan, 9))
            folder = one.out / scan.run_id
            if harm == "deleted":
                shutil.rmtree(folder)
            else:
                with (folder / JOURNAL).open("r+b") as file:
                    file.truncate((folder / JOURNAL).stat().st_size // 2)
            refused = await one.ask(scan.volume(10), scan.voxels(10).tobytes())
            assert isinstance(refused, wire.Refused)
            accepted = await one.ask(scan.start)
            assert isinstance(accepted, wire.RunAccepted)
            await one.volumes(scan, range(accepted.held[-1][1], 24))
            await one.ask(scan.end())
            await one.until(lambda: one.is_closed(scan))
            assert {row.volume for row in read_recorded(folder).rows} == set(range(24))

    asyncio.run(run())


def test_a_run_is_decoded_that_takes_the_name_of_one_that_was_moved_away(
    tiny_bundle: Path, scan: Scan, tmp_path: Path
) -> None:
    """Operators move the runs of a session to storage; the next then has the first's name again."""

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path / "out") as one:
            for _ in range(2):
                await one.ask(scan.start)
                await one.volumes(scan, range(24))
                await one.ask(scan.end())
                await one.until(lambda: one.is_closed(scan))
                moved = (one.out / scan.run_id).rename(tmp_path / "moved")
                assert {row.volume for row in read_recorded(moved).rows} == set(range(24))
                shutil.rmtree(moved)

    asyncio.run(run())


def test_a_run_is_closed_once_the_disk_takes_it(
    tiny_bundle: Path, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, tries = [True], []
    close = RunFolder.close

    def fail(folder: RunFolder, note: str = "") -> None:
        if full:
            tries.append(folder.path)
            raise RecordError("No space left on device")
        close(folder, note)

    monkeypatch.setattr(RunFolder, "close", fail)

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path / "out") as one:
            await one.ask(scan.start)
            await one.volumes(scan, range(24))
            await one.ask(scan.end())
            await one.until(lambda: len(tries) >= 2)  # it tries again
            assert not one.is_closed(scan)
            full.clear()
            await one.until(lambda: one.is_closed(scan))

    asyncio.run(run())


def test_a_decoder_that_is_stopped_just_as_news_comes_stops(tiny_bundle: Path, tmp_path: Path) -> None:
    async def run() -> None:
        bundle = Bundle.open(tiny_bundle)
        opened = open_decoders(bundle, "onnxruntime-cpu", 0, blurs_faces=False)
        options = Options(bundle=tiny_bundle, bundle_is_demo=False, out=tmp_path)
        with ChannelSender(tmp_path, "decoder") as channel:
            service = DecoderService(options, bundle, opened, channel, None)

            async def wait_on_and_on() -> None:
                while True:
                    await service._wait(PATIENCE_S)

            waiting = asyncio.create_task(wait_on_and_on())
            for _ in range(3):
                await asyncio.sleep(0)
            service._news.set()
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting], timeout=PATIENCE_S)
            assert waiting.cancelled()
            await service.stop()

    asyncio.run(run())
