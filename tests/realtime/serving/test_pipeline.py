"""The pipeline in this process: messages through a queue, a real decoder or one that a test holds back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Decoder as DecoderSpec
from realtime.bundle.spec import Preprocessing, Sampler
from realtime.decoding.decoder import Decoded, Decoder
from realtime.decoding.engines.choose import open_engine
from realtime.decoding.pace import Pace, StepTimes
from realtime.errors import EngineError, RecordError
from realtime.events import Event, Frame, Shown, Status
from realtime.record.folder import RunFolder
from realtime.record.reader import Recorded, read_image, read_recorded
from realtime.record.run_json import events_path
from realtime.record.tables import Row
from realtime.runs.pipeline import Pipeline, Settings
from realtime.sources import Received, Source

from .conftest import Scan

PATIENCE_S = 120.0
SHORT_TR_S = 0.3
"""A gap is given up and a run goes stale within a second."""
LONG_TR_S = 50.0
"""Nothing is given up and nothing goes stale, however busy the machine is."""


class QueueSource:
    """A source without a network."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Received] = asyncio.Queue()

    async def start(self) -> str:
        return "nowhere"

    async def receive(self) -> Received:
        return await self.messages.get()

    async def stop(self) -> None:
        pass

    async def ask(self, message: wire.ToRuntime, buffer: bytes = b"") -> wire.ToScanner:
        answer: asyncio.Future[wire.ToScanner] = asyncio.get_running_loop().create_future()

        async def reply(to_scanner: wire.ToScanner) -> None:
            answer.set_result(to_scanner)

        received = Received(
            message=message, payload=memoryview(buffer), received_s=perf_counter(), reply=reply
        )
        await self.messages.put(received)
        return await asyncio.wait_for(answer, PATIENCE_S)


class HeldDecoder:
    """Decodes one window each time the test lets it."""

    def __init__(self, spec: DecoderSpec, step_s: float = 1e-4) -> None:
        self.spec = spec
        self.began = threading.Semaphore(0)
        self._go = threading.Semaphore(0)
        self.fails = False
        self.samplers: list[str] = []
        self.pace = Pace(StepTimes(brain_s=0, guided_s=step_s, unguided_s=step_s / 2, vae_s=0))

    def decode(self, window: np.ndarray, sampler: Sampler) -> Decoded:
        self.samplers.append(sampler.name)
        self.began.release()
        assert self._go.acquire(timeout=PATIENCE_S)
        if self.fails:
            raise EngineError("the device was lost")
        image = np.full((32, 32, 3), 7, dtype=np.uint8)
        return Decoded(image=image, stages_ms={"brain": 1.0, "denoise": 1.0, "vae": 1.0})

    def let_go(self, times: int = 1) -> None:
        self._go.release(times)

    async def begins(self) -> None:
        assert await asyncio.to_thread(self.began.acquire, timeout=PATIENCE_S)


class Bench:
    """A pipeline that runs, its scanner's end, and what its listeners hear."""

    def __init__(
        self, bundle: Bundle, out: Path, decoder: object, sampler: Sampler | None, source: Source | None
    ) -> None:
        self.closed: list[Path] = []
        self.source = QueueSource()
        settings = Settings(
            bundle=bundle, bundle_is_demo=False, engine="an engine", sampler=sampler, seed=0, out=out
        )
        # A decoder of a test's own has what the pipeline uses of one.
        decoders = [cast(Decoder, decoder)]
        self.pipeline = Pipeline(settings, source or self.source, decoders, self.closed.append)
        self.heard: list[Event] = []
        self._news = asyncio.Event()

    @property
    def status(self) -> Status:
        return self.pipeline.broadcast.status

    @property
    def frames(self) -> list[Frame]:
        return [event.message for event in self.heard if isinstance(event.message, Frame)]

    async def listen(self) -> None:
        async with self.pipeline.broadcast.listen() as queue:
            while True:
                self.heard.append(await queue.get())
                self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def start(self, scan: Scan) -> wire.ToScanner:
        return await self.source.ask(scan.start)

    async def volume(self, scan: Scan, index: int) -> wire.ToScanner:
        return await self.source.ask(scan.volume(index), scan.voxels(index).tobytes())

    async def volumes(self, scan: Scan, indices: Iterable[int]) -> None:
        for index in indices:
            assert await self.volume(scan, index) == wire.Ack(run_id=scan.run_id, index=index)


@asynccontextmanager
async def bench(
    bundle: Bundle,
    out: Path,
    decoder: object | None = None,
    *,
    sampler: Sampler | None = None,
    resume: bool = False,
    source: Source | None = None,
    end_run: bool = False,
) -> AsyncIterator[Bench]:
    decoder = decoder or Decoder(bundle, open_engine(bundle, "onnxruntime-cpu", threads=1))
    one = Bench(bundle, out, decoder, sampler, source)
    listening = asyncio.create_task(one.listen())
    await asyncio.sleep(0)
    if resume:
        one.pipeline.resume_last()
    running = asyncio.create_task(one.pipeline.run())
    try:
        yield one
    finally:
        for task in (running, listening):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if source:
            await source.stop()
        if isinstance(decoder, HeldDecoder):
            decoder.let_go(1000)
        one.pipeline.stop(end_run=end_run)


@pytest.fixture(scope="module")
def bundle(make_tiny_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(make_tiny_bundle(tmp_path_factory.mktemp("long") / "tiny", **timed(LONG_TR_S)))


@pytest.fixture(scope="module")
def short_bundle(make_tiny_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(make_tiny_bundle(tmp_path_factory.mktemp("short") / "tiny", **timed(SHORT_TR_S)))


def timed(tr_s: float) -> dict[str, Any]:
    """Changes to the tiny bundle that give it a TR and the same drift basis at any."""
    high_pass_hz = 0.01 / tr_s
    return {
        "tr_s": tr_s,
        "preprocessing": Preprocessing(high_pass_hz=high_pass_hz, warmup_volumes=12, prior_volumes=10.0),
    }


@pytest.fixture
def scan(make_scan: type[Scan]) -> Scan:
    return make_scan(n_volumes=24, changes={"tr_s": LONG_TR_S})


@pytest.fixture
def short_scan(make_scan: type[Scan]) -> Scan:
    return make_scan(n_volumes=24, changes={"tr_s": SHORT_TR_S})


def frame_file(recorded: Recorded, event: Event) -> str:
    assert isinstance(event.message, Frame)
    file = recorded.rows[event.message.volume].frame
    assert file
    return file


def image_of(event: Event) -> NDArray[np.uint8]:
    assert event.image is not None
    return event.image


def shows(one: Bench, volume: int) -> bool:
    """Whether the newest frame is this volume's."""
    return bool(one.frames) and one.frames[-1].volume == volume


def keeps(one: Bench, volume: int) -> bool:
    """Whether the frame of a volume is kept for listeners to come."""
    return (volume, "general") in one.pipeline.broadcast.frames


def rows_of(one: Bench, scan: Scan) -> dict[int, Row]:
    return {row.volume: row for row in read_recorded(one.pipeline._settings.out / scan.run_id).rows}


def test_every_volume_with_a_window_gives_a_frame(
    bundle: Bundle, scan: Scan, make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path) as one:
            assert one.status.state == "waiting"
            assert await one.start(scan) == wire.RunAccepted(run_id=scan.run_id, held=[])
            for index in range(scan.n_volumes):
                if index in (3, 9):
                    png = make_picture(index)
                    assert await one.source.ask(scan.marker(index), png) == wire.MarkerAck(
                        run_id=scan.run_id, onset_volume=index
                    )
                await one.volume(scan, index)
                if index >= 5:
                    await one.until(partial(shows, one, index))
                assert one.status.state == ("trusted" if index >= 11 else "warming")
            assert await one.source.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)
            assert await one.source.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)  # asked twice
            await one.until(lambda: one.status.state == "ended")
            assert [frame.volume for frame in one.frames] == list(range(5, 24))
            assert [frame.state for frame in one.frames] == ["warming"] * 6 + ["trusted"] * 13
            assert one.frames[0].window == (0, 6)
            onsets = {frame.volume: frame.shown_onset for frame in one.frames}
            assert (onsets[10], onsets[11], onsets[16], onsets[17]) == (None, 3, 3, 9)
            for frame in one.frames:
                parts = [getattr(frame.latency_ms, name) for name in STAGES]
                assert frame.latency_ms.total == pytest.approx(sum(parts))
            shown = [(event.message, event.png) for event in one.heard if isinstance(event.message, Shown)]
            assert [message.onset_volume for message, _ in shown] == [3, 9]
            assert shown[0][1] == make_picture(3)
            counts = one.status.counts
            assert (counts.decoded, counts.warming, counts.received) == (13, 11, 24)
            (folder,) = one.closed
            recorded = read_recorded(folder)
            assert recorded.info.state == "closed"
            for event in one.heard:
                if isinstance(event.message, Frame):
                    image = read_image(folder / frame_file(recorded, event))
                    np.testing.assert_array_equal(image, image_of(event))
            assert [trial.row.volume for trial in recorded.trials()] == [11, 17]

    asyncio.run(run())


STAGES = ("journal", "preprocess", "wait", "brain", "denoise", "vae")


def test_while_a_decode_runs_only_the_newest_window_waits(bundle: Bundle, scan: Scan, tmp_path: Path) -> None:
    decoder = HeldDecoder(bundle.decoder())

    async def run() -> None:
        async with bench(bundle, tmp_path, decoder) as one:
            await one.start(scan)
            await one.volumes(scan, range(6))
            await decoder.begins()
            await one.volumes(scan, range(6, 20))
            assert one.status.counts.skipped == 13
            assert one.status.message == (
                "volume 18 skipped: a newer window was ready before its decode began"
            )
            decoder.let_go(2)
            await one.until(lambda: [frame.volume for frame in one.frames] == [5, 19])

    asyncio.run(run())


def test_the_sampler_is_the_best_for_which_there_is_time_and_a_change_is_told(
    bundle: Bundle, scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        decoder = HeldDecoder(bundle.decoder())
        async with bench(bundle, tmp_path, decoder) as one:
            assert one.status.message == "waiting for the scanner; decoding on an engine"
            await one.start(scan)
            await decode(one, decoder, range(6))
            assert decoder.samplers == ["ddim-4"]
            decoder.pace = HeldDecoder(
                bundle.decoder(), step_s=bundle.spec.tr_s / 3
            ).pace  # four steps no longer fit, two do
            await decode(one, decoder, [6])
            assert decoder.samplers == ["ddim-4", "multistep-3"]
            assert "decoding with multistep-3 from volume 6 on: it takes" in one.status.message
            decoder.pace = HeldDecoder(bundle.decoder()).pace
            await decode(one, decoder, [7])
            assert decoder.samplers[-1] == "ddim-4"
            assert "decoding with ddim-4 from volume 7 on" in one.status.message
            assert [frame.sampler for frame in one.frames] == decoder.samplers

    async def decode(one: Bench, decoder: HeldDecoder, volumes: Iterable[int]) -> None:
        n_frames = len(one.frames)
        await one.volumes(scan, volumes)
        await decoder.begins()
        decoder.let_go()
        opened = one.pipeline._run
        assert opened
        await one.until(lambda: len(one.frames) == n_frames + 1 and opened.queue.idle)

    asyncio.run(run())


def test_a_sampler_that_was_asked_for_is_kept_whatever_it_takes(
    bundle: Bundle, scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        decoder = HeldDecoder(bundle.decoder(), step_s=10.0)
        async with bench(bundle, tmp_path, decoder, sampler=bundle.sampler("ddim-4")) as one:
            await one.start(scan)
            await one.volumes(scan, range(6))
            await decoder.begins()
            decoder.let_go()
            await one.until(lambda: one.frames)
            assert [frame.sampler for frame in one.frames] == decoder.samplers == ["ddim-4"]

    asyncio.run(run())


def test_a_failed_decode_is_accounted_and_the_next_one_works(
    bundle: Bundle, scan: Scan, tmp_path: Path
) -> None:
    decoder = HeldDecoder(bundle.decoder())

    async def run() -> None:
        async with bench(bundle, tmp_path, decoder) as one:
            await one.start(scan)
            decoder.fails = True
            await one.volumes(scan, range(6))
            decoder.let_go()
            await one.until(lambda: one.status.counts.skipped == 1)
            decoder.fails = False
            await one.volumes(scan, [6])
            decoder.let_go()
            await one.until(lambda: one.frames)
            assert rows_of(one, scan)[5].reason == "its decode failed: the device was lost"

    asyncio.run(run())


def test_volumes_out_of_order_are_put_in_order_and_twice_is_once(
    bundle: Bundle, scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, [1, 0, 1, 2, 5, 5, 4])
            assert one.status.volume == 2
            await one.volumes(scan, [3])
            assert one.status.volume == 5
            assert one.status.counts.received == 6
            assert one.status.counts.missing == 0

    asyncio.run(run())


def test_a_gap_is_given_up_and_what_comes_late_is_kept_but_not_used(
    short_bundle: Bundle, short_scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(short_bundle, tmp_path) as one:
            await one.start(short_scan)
            await one.volumes(short_scan, [0, 1, 4])
            await one.until(lambda: one.status.counts.missing == 2)
            assert one.status.volume == 4
            assert one.status.message.startswith("2 volumes from 2 to 3 missing")
            await one.volumes(short_scan, [3])
            assert "volume 3 came after its gap had been given up" in one.status.message
            assert one.status.counts.received == 4
            await one.source.ask(short_scan.end("aborted"))
            counts = one.status.counts
            assert (counts.missing, counts.planned) == (24 - 3, 24)
            assert 3 in read_recorded(one.closed[0]).received

    asyncio.run(run())


def test_a_volume_of_nan_is_censored_and_the_run_goes_on(
    bundle: Bundle, make_scan: type[Scan], tmp_path: Path
) -> None:
    scan = make_scan(n_volumes=24, dtype="float32", changes={"tr_s": LONG_TR_S})

    async def run() -> None:
        async with bench(bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, range(8))
            nan = np.full((6, 6, 6), np.nan, dtype=np.float32).tobytes()
            assert isinstance(await one.source.ask(scan.volume(8), nan), wire.Ack)
            assert one.status.counts.censored == 1
            assert one.status.message == "volume 8 censored: too many of its ROI voxels are not finite"
            await one.volumes(scan, [9])
            await one.until(lambda: one.frames and one.frames[-1].volume == 9)

    asyncio.run(run())


def test_an_open_run_without_volumes_goes_stale_and_comes_back(
    short_bundle: Bundle, short_scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(short_bundle, tmp_path) as one:
            await one.start(short_scan)
            await one.volumes(short_scan, range(3))
            await one.until(lambda: one.status.state == "stale")
            await one.volume(short_scan, 3)
            message = one.heard[-1].message
            assert isinstance(message, Status | Frame)
            assert message.state != "stale"

    asyncio.run(run())


def test_another_run_is_refused_while_one_is_alive(
    bundle: Bundle, scan: Scan, make_scan: type[Scan], tmp_path: Path
) -> None:
    other = make_scan(run_id="other", n_volumes=24, changes={"tr_s": LONG_TR_S})

    async def run() -> None:
        async with bench(bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, [0])
            reply = await one.start(other)
            assert isinstance(reply, wire.Refused)
            assert reply.code == "busy"
            assert scan.run_id in reply.message
            await one.volumes(scan, [1])

    asyncio.run(run())


def test_another_run_takes_the_place_of_one_whose_scanner_is_gone(
    short_bundle: Bundle, short_scan: Scan, make_scan: type[Scan], tmp_path: Path
) -> None:
    other = make_scan(run_id="other", n_volumes=24, changes={"tr_s": SHORT_TR_S})

    async def run() -> None:
        async with bench(short_bundle, tmp_path) as one:
            await one.start(short_scan)
            await one.volumes(short_scan, range(3))
            await one.until(lambda: one.status.state == "stale")
            assert isinstance(await one.start(other), wire.RunAccepted)
            assert one.status.run_id == "other"
            recorded = read_recorded(one.closed[0])
            assert recorded.info.state == "closed"
            assert len(recorded.rows) == 24
            assert recorded.info.notes == ("given up at volume 2: another run began",)

    asyncio.run(run())


def test_a_run_of_which_no_volume_ever_came_does_not_stand_in_the_way(
    short_bundle: Bundle, short_scan: Scan, make_scan: type[Scan], tmp_path: Path
) -> None:
    other = make_scan(run_id="other", n_volumes=24, changes={"tr_s": SHORT_TR_S})

    async def run() -> None:
        async with bench(short_bundle, tmp_path) as one:
            await one.start(short_scan)
            async with asyncio.timeout(PATIENCE_S):
                while isinstance(reply := await one.start(other), wire.Refused):
                    assert reply.code == "busy"
                    await asyncio.sleep(SHORT_TR_S / 4)
            assert isinstance(reply, wire.RunAccepted)
            assert one.status.run_id == "other"

    asyncio.run(run())


def test_an_aborted_run_stands_where_its_last_volume_was(bundle: Bundle, scan: Scan, tmp_path: Path) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, range(10))
            await one.source.ask(wire.RunEnd(run_id=scan.run_id, reason="aborted"))
            assert one.status.state == "ended"
            assert one.status.volume == 9
            assert one.status.counts.missing == 14

    asyncio.run(run())


def test_a_scanner_that_comes_back_learns_what_is_held(bundle: Bundle, scan: Scan, tmp_path: Path) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, [0, 1, 2, 4])
            again = await one.start(scan)
            assert again == wire.RunAccepted(run_id=scan.run_id, held=[(0, 3), (4, 5)])
            other = await one.source.ask(msgspec.structs.replace(scan.start, n_volumes=30))
            assert isinstance(other, wire.Refused)
            assert other.code == "run-start"
            await one.volumes(scan, [3])
            assert one.status.volume == 4

    asyncio.run(run())


def test_a_stopped_runtime_goes_on_where_it_was(
    bundle: Bundle, scan: Scan, make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path) as one:
            await one.start(scan)
            await one.source.ask(scan.marker(2), make_picture(2))
            for index in range(15):
                await one.volume(scan, index)
                if index >= 5:
                    await one.until(partial(shows, one, index))
        # Killed between journal and picture, and in the middle of a line: both are in the journal still.
        folder = tmp_path / scan.run_id
        (folder / "shown" / "000002.png").unlink()
        events = events_path(folder, scan.start)
        events.write_bytes(events.read_bytes()[:-9])
        async with bench(bundle, tmp_path, resume=True) as two:
            assert two.status.state == "stale"
            assert two.status.message == "resumed at volume 14 after a restart"
            assert sorted(two.pipeline.broadcast.frames) == [(volume, "general") for volume in range(5, 15)]
            for made, event in two.pipeline.broadcast.frames.items():
                before = one.pipeline.broadcast.frames[made]
                np.testing.assert_array_equal(image_of(event), image_of(before))
                assert isinstance(event.message, Frame)
                assert isinstance(before.message, Frame)
                assert event.message.shown_onset == before.message.shown_onset
            assert two.pipeline.broadcast.shown[2].png == make_picture(2)
            reply = await two.start(scan)
            assert reply == wire.RunAccepted(run_id=scan.run_id, held=[(0, 15)])
            for index in range(15, 24):
                await two.volume(scan, index)
                await two.until(partial(keeps, two, index))
            await two.source.ask(scan.end())
            counts = two.status.counts
            assert (counts.received, counts.decoded, counts.warming, counts.skipped) == (24, 13, 11, 0)
            recorded = read_recorded(two.closed[0])
            assert [picture.onset_volume for picture in recorded.pictures] == [2]
            assert (folder / "shown" / "000002.png").read_bytes() == make_picture(2)
            assert recorded.info.notes == (
                "the runtime was stopped at volume 14; the run is still open",
                "resumed at volume 14 after a restart",
            )

    asyncio.run(run())


def test_the_same_run_again_is_another_take_and_the_page_starts_afresh(
    bundle: Bundle, scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path) as one:
            for _ in range(2):
                assert await one.start(scan) == wire.RunAccepted(run_id=scan.run_id, held=[])
                assert one.pipeline.broadcast.frames == {}
                await one.volumes(scan, range(6))
                await one.until(lambda: (5, "general") in one.pipeline.broadcast.frames)
                await one.source.ask(scan.end("aborted"))
            assert [folder.name for folder in one.closed] == [scan.run_id, f"{scan.run_id}_take-2"]
            assert one.frames[-1].run_id == one.status.run_id == f"{scan.run_id}_take-2"

    asyncio.run(run())


def test_a_run_left_open_with_another_bundle_is_not_mixed_with_this_one(
    bundle: Bundle, scan: Scan, make_tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    other = Bundle.open(make_tiny_bundle(tmp_path / "other", seed=1, **timed(LONG_TR_S)))

    async def run() -> None:
        async with bench(bundle, tmp_path / "out") as one:
            await one.start(scan)
            await one.volumes(scan, range(3))
        async with bench(other, tmp_path / "out", resume=True) as two:
            assert two.status.state == "waiting"
            assert await two.start(scan) == wire.RunAccepted(run_id=scan.run_id, held=[])
            assert (two.status.run_folder or "").endswith("_take-2")

    asyncio.run(run())


def test_two_runtimes_never_write_one_run(bundle: Bundle, scan: Scan, tmp_path: Path) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, range(3))
            async with bench(bundle, tmp_path, resume=True) as two:
                assert two.status.state == "waiting"
                assert await two.start(scan) == wire.RunAccepted(run_id=scan.run_id, held=[])
                assert (two.status.run_folder or "").endswith("_take-2")
            await one.volumes(scan, [3])

    asyncio.run(run())


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], AbstractContextManager[None]]:
    """Within it, what a run folder's method writes finds no space."""

    @contextlib.contextmanager
    def full(method: str) -> Iterator[None]:
        def fail(*arguments: object) -> None:
            raise RecordError("cannot write: No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, method, fail)
            yield

    return full


def test_a_disk_that_does_not_take_a_volume_is_said_and_nothing_is_acknowledged(
    bundle: Bundle, scan: Scan, tmp_path: Path, full_disk: Callable[[str], AbstractContextManager[None]]
) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, [0])
            with full_disk("journal"):
                reply = await one.volume(scan, 1)
            assert isinstance(reply, wire.Refused)
            assert (reply.code, reply.index) == ("runtime", 1)
            assert "No space left" in one.status.message
            await one.volumes(scan, [1, 2])
            assert one.status.counts.received == 3

    asyncio.run(run())


def test_a_row_that_cannot_be_written_refuses_no_volume_that_is_held(
    bundle: Bundle, scan: Scan, tmp_path: Path, full_disk: Callable[[str], AbstractContextManager[None]]
) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, [0])
            with full_disk("write_row"):
                await one.volumes(scan, [1])
            assert "No space left" in one.status.alarm
            await one.volumes(scan, [2])

    asyncio.run(run())


@pytest.mark.parametrize(("end_run", "method"), [(False, "note"), (True, "close")])
def test_a_stop_that_the_disk_does_not_take_leaves_the_run_to_the_next_runtime(
    bundle: Bundle,
    scan: Scan,
    tmp_path: Path,
    full_disk: Callable[[str], AbstractContextManager[None]],
    end_run: bool,
    method: str,
) -> None:
    async def run() -> None:
        with full_disk(method):
            async with bench(bundle, tmp_path, end_run=end_run) as one:
                await one.start(scan)
                await one.volumes(scan, range(3))
        async with bench(bundle, tmp_path) as two:
            assert await two.start(scan) == wire.RunAccepted(run_id=scan.run_id, held=[(0, 3)])

    asyncio.run(run())
