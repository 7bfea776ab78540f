"""Following a journal in this process: a real decoder, or one that a test holds back."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Decoder as DecoderSpec
from realtime.bundle.spec import Preprocessing, Sampler
from realtime.decoding.decoder import Decoded, Decoder
from realtime.decoding.engines.choose import open_engine
from realtime.decoding.pace import Pace, StepTimes
from realtime.errors import EngineError, RecordError
from realtime.events import Counts, Event, Frame, Shown
from realtime.preprocessing.spikes import SpikeRule
from realtime.preprocessing.stream import Pushed, StreamingPreprocessor
from realtime.record.folder import RunFolder
from realtime.record.past import past_events
from realtime.record.reader import Recorded, read_image, read_recorded
from realtime.record.run_journal import RunJournal
from realtime.record.run_json import EngineUsed, decoders_of, events_path, new_run_file
from realtime.record.tables import Row
from realtime.runs import follow
from realtime.runs.checkpoint import CHECKPOINT
from realtime.runs.decode_loop import ByDeadline, DecodeLoop
from realtime.runs.follow import Following
from realtime.runs.open import open_run
from realtime.runs.status import run_state

from .conftest import Scan

PATIENCE_S = 120.0
SHORT_TR_S = 0.3
"""A gap is given up and a run goes stale within a second."""
LONG_TR_S = 50.0
"""Nothing is given up and nothing goes stale, however busy the machine is."""


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
    """A journal that grows, a decoder that follows it, and what its listeners hear."""

    def __init__(
        self, bundle: Bundle, out: Path, decoder: object, sampler: Sampler | None, scan: Scan
    ) -> None:
        self.scan = scan
        self.path = out / scan.run_id
        info = new_run_file(
            scan.start,
            bundle_name=bundle.spec.name,
            bundle_sha256=bundle.sha256,
            decoders=decoders_of(bundle.spec),
            seed=0,
            spikes=SpikeRule(),
        )
        is_there = self.path.exists()
        self.journal = RunJournal.reopen(self.path) if is_there else RunJournal.create(out, info)
        # A decoder of a test's own has what the loop uses of one.
        decoders = [cast(Decoder, decoder)]
        policy = ByDeadline(decoders, bundle.spec.samplers, sampler)
        self.decoding = DecodeLoop(decoders, policy, self._hear)
        engine = EngineUsed(name="an-engine", description="an engine")
        self.run = open_run(self.path, bundle, engine, "shown")
        self.heard: list[Event] = []
        self.is_current = True
        self._grown = asyncio.Event()
        self._news = asyncio.Event()
        self.following = Following(
            self.run,
            self.decoding,
            news=self._wait,
            send=self._hear,
            changed=self._news.set,
            is_current=lambda: self.is_current,
        )

    @property
    def frames(self) -> list[Frame]:
        return [event.message for event in self.heard if isinstance(event.message, Frame)]

    @property
    def counts(self) -> Counts:
        return self.run.account.counts

    def status(self, silent_s: float = 0.0) -> str:
        return run_state(self.run, is_open=self.run.end is None, silent_s=silent_s)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def volume(self, index: int, age_s: float = 0.0) -> None:
        voxels = self.scan.voxels(index).tobytes()
        self.journal.add_volume(self.scan.volume(index), memoryview(voxels), time.time() - age_s)
        self._grown.set()

    async def volumes(self, indices: Iterable[int]) -> None:
        """Record volumes that have not come yet; each is read before the next."""
        for index in indices:
            before = self.counts.received
            self.volume(index)
            await self.until(lambda before=before: self.counts.received > before)  # type: ignore[misc]

    def marker(self, onset_volume: int, png: bytes) -> None:
        self.journal.add_marker(self.scan.marker(onset_volume), memoryview(png), time.time())
        self._grown.set()

    def end(self, reason: str = "complete") -> None:
        self.journal.end(self.scan.end(reason), time.time())
        self._grown.set()

    async def _wait(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._grown.wait(), timeout_s)
        self._grown.clear()

    def _hear(self, event: Event) -> None:
        self.heard.append(event)
        self._news.set()


@asynccontextmanager
async def bench(
    bundle: Bundle,
    out: Path,
    scan: Scan,
    decoder: object | None = None,
    *,
    sampler: Sampler | None = None,
) -> AsyncIterator[tuple[Bench, asyncio.Task[bool]]]:
    decoder = decoder or Decoder(bundle, open_engine(bundle, "onnxruntime-cpu", threads=1))
    one = Bench(bundle, out, decoder, sampler, scan)
    following = asyncio.create_task(one.following.follow())
    following.add_done_callback(lambda _: one._news.set())
    try:
        yield one, following
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError, RecordError):
            await following
        if isinstance(decoder, HeldDecoder):
            decoder.let_go(1000)
        await one.following.stop()
        one.decoding.stop()
        one.run.folder.let_go()
        one.journal.close()


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


def rows_of(one: Bench) -> dict[int, Row]:
    return {row.volume: row for row in read_recorded(one.path).rows}


STAGES = ("journal", "preprocess", "wait", "brain", "denoise", "vae")


def test_every_volume_with_a_window_gives_a_frame(
    bundle: Bundle, scan: Scan, make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path, scan) as (one, following):
            assert one.status() == "waiting"
            for index in range(scan.n_volumes):
                if index in (3, 9):
                    one.marker(index, make_picture(index))
                await one.volumes([index])
                if index >= 5:
                    await one.until(partial(shows, one, index))
                assert one.status() == ("trusted" if index >= 11 else "warming")
            one.end()
            assert await following
            assert one.status() == "ended"
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
            assert (one.counts.decoded, one.counts.warming, one.counts.received) == (13, 11, 24)
            recorded = read_recorded(one.path)
            assert recorded.info.state == "closed"
            assert recorded.info.notes == ()
            for event in one.heard:
                if isinstance(event.message, Frame):
                    image = read_image(one.path / frame_file(recorded, event))
                    np.testing.assert_array_equal(image, image_of(event))
            assert [trial.row.volume for trial in recorded.trials()] == [11, 17]

    asyncio.run(run())


def test_while_a_decode_runs_only_the_newest_window_waits(bundle: Bundle, scan: Scan, tmp_path: Path) -> None:
    decoder = HeldDecoder(bundle.decoder())

    async def run() -> None:
        async with bench(bundle, tmp_path, scan, decoder) as (one, _):
            await one.volumes(range(6))
            await decoder.begins()
            await one.volumes(range(6, 20))
            assert one.counts.skipped == 13
            assert one.run.message == "volume 18 skipped: a newer window was ready before its decode began"
            decoder.let_go(2)
            await one.until(lambda: [frame.volume for frame in one.frames] == [5, 19])

    asyncio.run(run())


def test_a_decoder_that_was_stopped_takes_the_newest_window_first(
    bundle: Bundle, scan: Scan, tmp_path: Path
) -> None:
    """Ten volumes come at once, as after a SIGSTOP."""
    decoder = HeldDecoder(bundle.decoder())

    async def run() -> None:
        async with bench(bundle, tmp_path, scan, decoder) as (one, _):
            await one.volumes(range(4))
            for index in range(4, 14):
                one.volume(index)
            decoder.let_go(10)
            await one.until(lambda: one.frames)
            assert [frame.volume for frame in one.frames] == [13]
            assert {rows_of(one)[volume].state for volume in range(5, 13)} == {"skipped"}

    asyncio.run(run())


def test_the_sampler_is_the_best_for_which_there_is_time_and_a_change_is_told(
    bundle: Bundle, scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        decoder = HeldDecoder(bundle.decoder())
        async with bench(bundle, tmp_path, scan, decoder) as (one, _):
            await decode(one, decoder, range(6))
            assert decoder.samplers == ["ddim-4"]
            decoder.pace = HeldDecoder(
                bundle.decoder(), step_s=bundle.spec.tr_s / 3
            ).pace  # four steps no longer fit, two do
            await decode(one, decoder, [6])
            assert decoder.samplers == ["ddim-4", "multistep-3"]
            assert "decoding with multistep-3 from volume 6 on: it takes" in one.run.message
            decoder.pace = HeldDecoder(bundle.decoder()).pace
            await decode(one, decoder, [7])
            assert decoder.samplers[-1] == "ddim-4"
            assert "decoding with ddim-4 from volume 7 on" in one.run.message
            assert [frame.sampler for frame in one.frames] == decoder.samplers

    async def decode(one: Bench, decoder: HeldDecoder, volumes: Iterable[int]) -> None:
        n_frames = len(one.frames)
        await one.volumes(volumes)
        await decoder.begins()
        decoder.let_go()
        await one.until(lambda: len(one.frames) == n_frames + 1 and one.counts.warming == 6 + n_frames)

    asyncio.run(run())


def test_a_sampler_that_was_asked_for_is_kept_whatever_it_takes(
    bundle: Bundle, scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        decoder = HeldDecoder(bundle.decoder(), step_s=10.0)
        async with bench(bundle, tmp_path, scan, decoder, sampler=bundle.sampler("ddim-4")) as (one, _):
            await one.volumes(range(6))
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
        async with bench(bundle, tmp_path, scan, decoder) as (one, _):
            decoder.fails = True
            await one.volumes(range(6))
            decoder.let_go()
            await one.until(lambda: one.counts.skipped == 1)
            decoder.fails = False
            await one.volumes([6])
            decoder.let_go()
            await one.until(lambda: one.frames)
            assert rows_of(one)[5].reason == "its decode failed: the device was lost"

    asyncio.run(run())


def test_volumes_out_of_order_are_put_in_order(bundle: Bundle, scan: Scan, tmp_path: Path) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path, scan) as (one, _):
            await one.volumes([1, 0, 2, 5, 4])
            assert one.run.position == 2
            await one.volumes([3])
            assert one.run.position == 5
            assert one.counts.received == 6
            assert one.counts.missing == 0

    asyncio.run(run())


def test_a_gap_is_given_up_and_what_comes_late_is_kept_but_not_used(
    short_bundle: Bundle, short_scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(short_bundle, tmp_path, short_scan) as (one, following):
            await one.volumes([0, 1, 4])
            await one.until(lambda: one.counts.missing == 2)
            assert one.run.position == 4
            assert one.run.message.startswith("2 volumes from 2 to 3 missing")
            await one.volumes([3])
            assert "volume 3 came after its gap had been given up" in one.run.message
            assert one.counts.received == 4
            one.end("aborted")
            await following
            assert (one.counts.missing, one.counts.planned) == (24 - 3, 24)
            assert 3 in read_recorded(one.path).received

    asyncio.run(run())


def test_a_volume_that_jumped_ahead_voids_none_of_those_before_it(
    short_bundle: Bundle, short_scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(short_bundle, tmp_path, short_scan) as (one, following):
            await one.volumes([0, 1, 20])
            for index in range(2, 12):  # for longer than a gap is waited for
                await asyncio.sleep(SHORT_TR_S)
                await one.volumes([index])
            assert one.counts.missing == 0
            assert one.run.position == 11
            await one.until(lambda: one.counts.missing == 8)  # those that really did not come
            assert one.run.position == 20

    asyncio.run(run())


def test_a_volume_of_nan_is_censored_and_the_run_goes_on(
    bundle: Bundle, make_scan: type[Scan], tmp_path: Path
) -> None:
    class Broken(make_scan):  # type: ignore[misc,valid-type]
        def voxels(self, index: int) -> np.ndarray:
            return np.full((6, 6, 6), np.nan, np.float32) if index == 8 else super().voxels(index)

    scan = Broken(n_volumes=24, dtype="float32", changes={"tr_s": LONG_TR_S})

    async def run() -> None:
        async with bench(bundle, tmp_path, scan) as (one, _):
            await one.volumes(range(9))
            assert one.counts.censored == 1
            assert one.run.message == "volume 8 censored: too many of its ROI voxels are not finite"
            await one.volumes([9])
            await one.until(lambda: one.frames and one.frames[-1].volume == 9)

    asyncio.run(run())


def test_a_run_is_stale_when_no_volume_came_for_three_tr(bundle: Bundle, scan: Scan, tmp_path: Path) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path, scan) as (one, _):
            await one.volumes(range(3))
            assert one.status(silent_s=3.1 * LONG_TR_S) == "stale"
            assert one.status(silent_s=2.9 * LONG_TR_S) == "warming"
            assert abs(one.run.heard_s - perf_counter()) < LONG_TR_S

    asyncio.run(run())


def test_an_aborted_run_stands_where_its_last_volume_was(bundle: Bundle, scan: Scan, tmp_path: Path) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path, scan) as (one, following):
            await one.volumes(range(10))
            one.end("aborted")
            await following
            assert one.status() == "ended"
            assert one.run.position == 9
            assert one.counts.missing == 14
            assert read_recorded(one.path).info.notes == ("the scanner aborted the run",)

    asyncio.run(run())


def test_a_run_that_was_given_up_says_where(bundle: Bundle, scan: Scan, tmp_path: Path) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path, scan) as (one, following):
            await one.volumes(range(3))
            one.end("given_up")
            await following
            recorded = read_recorded(one.path)
            assert len(recorded.rows) == 24
            assert recorded.info.notes == ("given up at volume 2: another run began",)

    asyncio.run(run())


def test_a_killed_decoder_goes_on_where_it_was(
    bundle: Bundle, scan: Scan, make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path, scan) as (one, _):
            one.marker(2, make_picture(2))
            for index in range(15):
                await one.volumes([index])
                if index >= 5:
                    await one.until(partial(shows, one, index))
        # Killed between a picture and its row, and in the middle of a line: both are in the journal still.
        folder = tmp_path / scan.run_id
        (folder / "shown" / "000002.png").unlink()
        events = events_path(folder, scan.start)
        events.write_bytes(events.read_bytes()[:-9])
        async with bench(bundle, tmp_path, scan) as (two, following):
            await two.until(lambda: two.run.message)
            assert two.run.message == "resumed at volume 14 after a restart"
            assert two.frames == []
            past = {
                (event.message.volume, event.message.decoder): event
                for event in past_events(folder)
                if isinstance(event.message, Frame)
            }
            assert sorted(past) == [(volume, "general") for volume in range(5, 15)]
            for event in one.heard:
                if isinstance(event.message, Frame):
                    again = past[event.message.volume, "general"]
                    np.testing.assert_array_equal(image_of(again), image_of(event))
                    assert isinstance(again.message, Frame)
                    assert again.message.shown_onset == event.message.shown_onset
            pictures = [event.png for event in past_events(folder) if isinstance(event.message, Shown)]
            assert pictures == [make_picture(2)]
            for index in range(15, 24):
                await two.volumes([index])
                await two.until(partial(shows, two, index))
            two.end()
            await following
            counts = two.counts
            assert (counts.received, counts.decoded, counts.warming, counts.skipped) == (24, 13, 11, 0)
            recorded = read_recorded(folder)
            assert [picture.onset_volume for picture in recorded.pictures] == [2]
            assert (folder / "shown" / "000002.png").read_bytes() == make_picture(2)
            assert recorded.info.notes == ("resumed at volume 14 after a restart",)

    asyncio.run(run())


def test_a_decoder_that_comes_late_decodes_the_newest_window_and_accounts_for_the_rest(
    bundle: Bundle, scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        info_of = Bench(bundle, tmp_path, HeldDecoder(bundle.decoder()), None, scan)
        for index in range(20):
            info_of.volume(index, age_s=2 * LONG_TR_S)
        info_of.run.folder.let_go()
        info_of.journal.close()
        async with bench(bundle, tmp_path, scan) as (one, following):
            await one.until(lambda: one.frames)
            assert one.frames[0].volume == 19
            one.end("aborted")
            await following
            rows = rows_of(one)
            assert len(rows) == 24
            assert {rows[volume].reason for volume in range(5, 19)} == {
                "the decoder was restarted before it was decoded"
            }

    asyncio.run(run())


def test_a_decoder_goes_on_from_its_checkpoint_as_if_it_had_not_been_killed(
    bundle: Bundle,
    scan: Scan,
    make_picture: Callable[..., bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follow, "PAYS_S", 0.0)  # as if every volume took long to preprocess
    pushed: list[int] = []
    push = StreamingPreprocessor.push

    def watched(self: StreamingPreprocessor, index: int, volume: NDArray[Any]) -> Pushed:
        pushed.append(index)
        return push(self, index, volume)

    monkeypatch.setattr(StreamingPreprocessor, "push", watched)

    async def decode(one: Bench, volumes: Iterable[int]) -> None:
        for index in volumes:
            if index == 2:
                one.marker(index, make_picture(index))
            await one.volumes([index])
            if index >= 5:
                await one.until(partial(shows, one, index))

    async def run() -> None:
        async with bench(bundle, tmp_path / "whole", scan) as (whole, following):
            await decode(whole, range(24))
            whole.end()
            await following
        async with bench(bundle, tmp_path / "killed", scan) as (one, _):
            await decode(one, range(15))
        pushed.clear()
        async with bench(bundle, tmp_path / "killed", scan) as (two, following):
            await two.until(lambda: two.run.message)
            assert two.run.message == "resumed at volume 14 after a restart"
            assert two.status() == "trusted"
            assert two.counts == one.counts
            await decode(two, range(15, 24))
            assert 0 < pushed[0] <= 15
            two.end()
            await following
            assert not (two.path / CHECKPOINT).exists()
            frames = {
                event.message.volume: (event.message.shown_onset, image_of(event).tobytes())
                for event in one.heard + two.heard
                if isinstance(event.message, Frame)
            }
            expected = {
                event.message.volume: (event.message.shown_onset, image_of(event).tobytes())
                for event in whole.heard
                if isinstance(event.message, Frame)
            }
            assert frames == expected
            assert sorted(frames) == list(range(5, 24))

    asyncio.run(run())


def test_a_picture_that_cannot_be_read_is_left_out_and_told(
    bundle: Bundle, scan: Scan, make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path, scan) as (one, _):
            one.marker(2, b"no picture")
            one.marker(3, make_picture(3))
            await one.volumes(range(6))
            shown = [event.message for event in one.heard if isinstance(event.message, Shown)]
            assert [message.onset_volume for message in shown] == [3]
            assert not (one.path / "shown" / "000002.png").exists()

    asyncio.run(run())


def test_a_run_whose_folder_is_gone_or_that_the_recorder_let_go_of_is_let_go_of(
    bundle: Bundle, scan: Scan, make_scan: type[Scan], tmp_path: Path
) -> None:
    other = make_scan(run_id="other", n_volumes=24, changes={"tr_s": SHORT_TR_S})
    deleted = make_scan(run_id="deleted", n_volumes=24, changes={"tr_s": SHORT_TR_S})

    async def run() -> None:
        async with bench(bundle, tmp_path, deleted) as (one, following):
            await one.volumes(range(3))
            shutil.rmtree(one.path)
            assert await following is False
        async with bench(bundle, tmp_path, other) as (one, following):
            await one.volumes(range(3))
            one.is_current = False
            assert await following is False
            assert read_recorded(one.path).info.state == "open"

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


def test_a_row_that_cannot_be_written_is_an_alarm_until_one_can(
    bundle: Bundle, scan: Scan, tmp_path: Path, full_disk: Callable[[str], AbstractContextManager[None]]
) -> None:
    async def run() -> None:
        async with bench(bundle, tmp_path, scan) as (one, _):
            await one.volumes([0])
            with full_disk("write_row"):
                await one.volumes([1])
            assert "No space left" in one.run.alarm
            await one.volumes([2])
            assert not one.run.alarm

    asyncio.run(run())


def test_an_end_that_the_disk_does_not_take_leaves_the_run_to_the_next_decoder(
    bundle: Bundle, scan: Scan, tmp_path: Path, full_disk: Callable[[str], AbstractContextManager[None]]
) -> None:
    async def run() -> None:
        with full_disk("close"):
            async with bench(bundle, tmp_path, scan) as (one, following):
                await one.volumes(range(3))
                one.end("aborted")
                with pytest.raises(RecordError, match="No space left"):
                    await following
        assert read_recorded(tmp_path / scan.run_id).info.state == "open"
        async with bench(bundle, tmp_path, scan) as (_, following):
            assert await following
        assert read_recorded(tmp_path / scan.run_id).info.state == "closed"

    asyncio.run(run())
