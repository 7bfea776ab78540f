"""Runs that are recorded and followed in this process in a test's own time, and a recorder in real time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Preprocessing
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine
from realtime.events import Recording
from realtime.preprocessing.spikes import SpikeRule
from realtime.record.folder import RunFolder
from realtime.record.journal import JOURNAL, JournalReader
from realtime.record.reader import Recorded, read_recorded
from realtime.record.run_journal import RunJournal
from realtime.record.run_json import EngineUsed, Faces, RunFile, decoders_of, new_run_file
from realtime.recorder.recorder import Recorder, Settings
from realtime.runs.decode_loop import ByDeadline, DecodeLoop
from realtime.runs.follow import Following
from realtime.runs.open import open_run
from realtime.sources import Peer, Received, Source

from .conftest import Scan

PATIENCE_S = 120.0
SHORT_TR_S = 0.3
"""A gap is given up and a run goes stale within a second."""


def timed(tr_s: float) -> dict[str, Any]:
    """Changes to the tiny bundle that give it a TR and the same drift basis at any."""
    high_pass_hz = 0.01 / tr_s
    return {
        "tr_s": tr_s,
        "preprocessing": Preprocessing(high_pass_hz=high_pass_hz, warmup_volumes=12, prior_volumes=10.0),
    }


# A run in a test's own time


class Lockstep:
    """The journal of a run and the run that follows it: each message is read as soon as it is recorded."""

    def __init__(
        self,
        journal: RunJournal,
        bundle: Bundle,
        engine: EngineUsed | None = None,
        faces: Faces = "blurred",
        *,
        carry: bool = False,
    ) -> None:
        self.journal = journal
        self.path = journal.path
        self.run = open_run(journal.path, bundle, engine or EngineUsed(name="test"), faces, carry=carry)
        self._reader = JournalReader(journal.path / JOURNAL)
        self._read(0.0, is_past=True)

    @classmethod
    def begin(
        cls, out: Path, bundle: Bundle, start: wire.RunStart, *, seed: int = 0, **options: Any
    ) -> Lockstep:
        """A run that begins; ``options`` are those of the decoder."""
        info = new_run_file(
            start,
            bundle_name=bundle.spec.name,
            bundle_sha256=bundle.sha256,
            decoders=decoders_of(bundle.spec),
            seed=seed,
            spikes=SpikeRule(),
        )
        return cls(RunJournal.create(out, info), bundle, **options)

    @classmethod
    def reopen(cls, path: Path, bundle: Bundle, **options: Any) -> Lockstep:
        """A run that was left open, by a recorder and a decoder that were started again."""
        return cls(RunJournal.reopen(path), bundle, **options)

    def volume(self, message: wire.Volume, payload: bytes, now_s: float) -> bool:
        """Record a volume and follow it; whether it is a new one."""
        is_new = self.journal.add_volume(message, memoryview(payload), now_s)
        self._read(now_s)
        return is_new

    def marker(self, message: wire.Marker, png: bytes, now_s: float = 0.0) -> None:
        """Record a marker and follow it."""
        self.journal.add_marker(message, memoryview(png), now_s)
        self._read(now_s)

    def scanner_is_back(self, now_s: float) -> None:
        """Record that the scanner has sent its start again."""
        self.journal.add_return(now_s)
        self._read(now_s)

    def end(self, reason: Any = "complete") -> None:
        """Record the run's end; what has not come is missing."""
        self.journal.end(wire.RunEnd(run_id=self.run.start.run_id, reason=reason), 0.0)
        self._read(0.0)
        self.run.finish()

    def close(self, note: str = "") -> None:
        """Close the run; decodes are over."""
        self.run.close(note)
        self.let_go()

    def let_go(self) -> None:
        """As when both processes die: the run stays as it is."""
        self._reader.__exit__()
        self.journal.close()
        self.run.folder.let_go()

    def _read(self, now_s: float, *, is_past: bool = False) -> None:
        while entry := self._reader.read():
            self.run.take(entry, now_s, is_past=is_past)


def opened(root: Path, info: RunFile) -> RunFolder:
    """The folder of a run that has just begun, for a decoder; no more is recorded."""
    journal = RunJournal.create(root, info)
    journal.close()
    return RunFolder.open(journal.path, info.decoders)


# A recorder in real time


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

    async def ask(
        self,
        message: wire.ToRuntime,
        buffer: bytes = b"",
        peer: Peer | None = None,
        received_s: float | None = None,
    ) -> wire.ToScanner:
        """The recorder's answer to a message that was received now, or when a test says."""
        answer: asyncio.Future[wire.ToScanner] = asyncio.get_running_loop().create_future()

        async def reply(to_scanner: wire.ToScanner) -> None:
            answer.set_result(to_scanner)

        received = Received(
            message=message,
            payload=memoryview(buffer),
            received_s=perf_counter() if received_s is None else received_s,
            reply=reply,
            peer=peer or Peer(),
        )
        await self.messages.put(received)
        return await asyncio.wait_for(answer, PATIENCE_S)


class Bench:
    """A recorder that runs, its scanner's end, and what it tells its listeners."""

    def __init__(self, bundle: Bundle, out: Path, source: Source | None) -> None:
        self.source = QueueSource()
        self.out = out
        self.told: list[Recording] = []
        self._news = asyncio.Event()
        settings = Settings(spec=bundle.spec, bundle_sha256=bundle.sha256, seed=0, out=out)
        self.recorder = Recorder(settings, source or self.source, self._tell)

    @property
    def recording(self) -> Recording:
        return self.recorder.recording

    @property
    def ended(self) -> list[Path]:
        """Folders of the runs that have ended, in order."""
        folders = [Path(each.run_folder) for each in self.told if each.run_folder and not each.is_open]
        return list(dict.fromkeys(folders))

    def _tell(self, recording: Recording) -> None:
        self.told.append(recording)
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
async def bench(bundle: Bundle, out: Path, *, source: Source | None = None) -> AsyncIterator[Bench]:
    one = Bench(bundle, out, source)
    one.recorder.adopt_last()
    running = asyncio.create_task(one.recorder.run())
    try:
        yield one
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        if source:
            await source.stop()
        one.recorder.stop()


async def decoded(path: Path, bundle: Bundle) -> Recorded:
    """A run that has ended, once it was decoded to its end in this process."""
    decoders = [Decoder(bundle, open_engine(bundle, "onnxruntime-cpu", threads=1))]
    loop = DecodeLoop(decoders, ByDeadline(decoders, bundle.spec.samplers, None), lambda event: None)
    run = open_run(path, bundle, EngineUsed(name="onnxruntime-cpu"), "blurred")
    following = Following(
        run,
        loop,
        news=asyncio.sleep,
        send=lambda event: None,
        changed=lambda: None,
        is_current=lambda: True,
    )
    try:
        assert await following.follow()
    finally:
        loop.stop()
    return read_recorded(path)
