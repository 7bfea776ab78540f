"""The recorder in this process: messages through a queue, real journals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import pytest

from realtime import wire
from realtime.bundle.match import read_spec
from realtime.errors import RecordError, RecordGoneError
from realtime.events import Recording
from realtime.record.journal import JOURNAL, Journal, JournalReader, read_journal
from realtime.record.run_journal import RunJournal, has_ended
from realtime.record.run_json import read_run_file
from realtime.record.storage import Folder
from realtime.recorder import recorder as recorder_module
from realtime.recorder.owner import STALE_TR
from realtime.recorder.recorder import FAR_AHEAD, Recorder, Settings
from realtime.service.record import unfinished_run
from realtime.sources import Peer, Source, run_boundaries
from realtime.sources.run_boundaries import Plan, RunBoundarySource, RunOver

from .conftest import Scan
from .in_process import QueueSource

PATIENCE_S = 120.0
SCANNER = Peer(key="scanner", connection=b"1")


class Bench:
    """A recorder that runs, a scanner's end, and what it tells."""

    def __init__(
        self, bundle: Path, out: Path, fallback_out: Path | None, source: Source | None = None
    ) -> None:
        spec, sha256 = read_spec(bundle)
        self.out = out
        self.now_s = perf_counter()
        """When the next message is received; a test moves it on."""
        self.said: list[Recording] = []
        self._source = QueueSource()
        settings = Settings(spec=spec, bundle_sha256=sha256, seed=0, out=out, fallback_out=fallback_out)
        self.recorder = Recorder(settings, source or self._source, self.said.append)

    async def ask(self, message: wire.ToRuntime, buffer: bytes = b"", peer: Peer = SCANNER) -> wire.ToScanner:
        return await self._source.ask(message, buffer, peer, self.now_s)

    async def start(self, scan: Scan, peer: Peer = SCANNER, secret: str | None = None) -> wire.ToScanner:
        return await self.ask(msgspec.structs.replace(scan.start, secret=secret), peer=peer)

    async def volume(self, scan: Scan, index: int, peer: Peer = SCANNER) -> wire.ToScanner:
        voxels = scan.voxels(index).tobytes()
        return await self.ask(wire.with_checksum(scan.volume(index), voxels), voxels, peer)

    async def volumes(self, scan: Scan, indices: Iterable[int]) -> None:
        for index in indices:
            assert await self.volume(scan, index) == wire.Ack(run_id=scan.run_id, index=index)

    def journal(self, scan: Scan, out: Path | None = None) -> dict[int, bytes]:
        """Voxels of the volumes in the journal of a run."""
        found: dict[int, bytes] = {}
        for entry in read_journal((out or self.out) / scan.run_id / JOURNAL):
            message = wire.decode_to_runtime(entry.header)
            if isinstance(message, wire.Volume):
                assert message.index not in found
                found[message.index] = entry.payload
        return found


@asynccontextmanager
async def bench(
    bundle: Path,
    out: Path,
    *,
    fallback_out: Path | None = None,
    adopt: bool = False,
    source: Source | None = None,
) -> AsyncIterator[Bench]:
    one = Bench(bundle, out, fallback_out, source)
    if adopt:
        one.recorder.adopt_last()
    running = asyncio.create_task(one.recorder.run())
    try:
        yield one
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        one.recorder.stop()


@pytest.fixture
def scan(make_scan: type[Scan]) -> Scan:
    return make_scan(n_volumes=24)


def refusal(reply: wire.ToScanner) -> str:
    assert isinstance(reply, wire.Refused), reply
    return reply.code


def test_a_volume_is_acknowledged_once_it_is_in_the_journal(
    tiny_bundle: Path, scan: Scan, make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            assert await one.start(scan) == wire.RunAccepted(run_id=scan.run_id, held=[])
            for index in range(scan.n_volumes):
                await one.volumes(scan, [index])
                assert one.journal(scan)[index] == scan.voxels(index).tobytes()
            marker, png = scan.marker(3), make_picture(3)
            assert await one.ask(marker, png) == wire.MarkerAck(run_id=scan.run_id, onset_volume=3)
            for _ in range(2):  # asked twice
                assert await one.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)
            assert not one.recorder.recording.is_open
            *_, last = read_journal(tmp_path / scan.run_id / JOURNAL)
            assert wire.decode_to_runtime(last.header) == scan.end()

    asyncio.run(run())


def test_out_of_order_and_twice_is_once(tiny_bundle: Path, scan: Scan, tmp_path: Path) -> None:
    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, [1, 0, 1, 2, 5, 5, 4])
            assert list(one.journal(scan)) == [1, 0, 2, 5, 4]
            again = await one.start(scan)
            assert again == wire.RunAccepted(run_id=scan.run_id, held=[(0, 3), (4, 6)])

    asyncio.run(run())


def test_a_volume_again_with_other_voxels_is_an_alarm_and_the_first_stays(
    tiny_bundle: Path, scan: Scan, make_scan: type[Scan], tmp_path: Path
) -> None:
    other = make_scan(n_volumes=24, seed=1)

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, range(3))
            assert refusal(await one.volume(other, 1)) == "duplicate"
            assert "came again with other voxels" in one.recorder.recording.message
            assert one.journal(scan)[1] == scan.voxels(1).tobytes()
            await one.volumes(scan, [1, 3])
        async with bench(
            tiny_bundle, tmp_path, adopt=True
        ) as two:  # a new process knows the first's checksum
            await two.start(scan)
            assert refusal(await two.volume(other, 1)) == "duplicate"

    asyncio.run(run())


def test_a_volume_far_ahead_is_kept_and_told(
    tiny_bundle: Path, make_scan: type[Scan], tmp_path: Path
) -> None:
    scan = make_scan(n_volumes=2 * FAR_AHEAD)

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, [0, FAR_AHEAD])
            assert "ahead" not in one.recorder.recording.message
            await one.volumes(scan, [2 * FAR_AHEAD - 1, 1])
            assert [said.message for said in one.said if "volumes ahead" in said.message] == []

    asyncio.run(run())
    big = make_scan(run_id="big", n_volumes=3 * FAR_AHEAD)

    async def jump() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(big)
            await one.volumes(big, [0, FAR_AHEAD + 1])
            assert f"came {FAR_AHEAD + 1} volumes ahead" in one.recorder.recording.message
            await one.volumes(big, range(1, 4))

    asyncio.run(jump())


STRANGERS = [Peer(key="another", connection=b"2"), Peer(key="scanner", connection=b"2")]


@pytest.mark.parametrize("stranger", STRANGERS, ids=["with another key", "with the same key"])
def test_a_run_belongs_to_the_peer_that_started_it(
    tiny_bundle: Path, scan: Scan, make_scan: type[Scan], tmp_path: Path, stranger: Peer
) -> None:
    """Nobody else can add to it, end it, start it again or take its place."""
    planted, other = make_scan(n_volumes=24, seed=1), make_scan(run_id="other", n_volumes=24)

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan, secret="the owner's own secret")
            await one.volumes(scan, range(3))
            for code in (
                refusal(await one.volume(planted, 3, stranger)),
                refusal(await one.volume(planted, 23, stranger)),
                refusal(await one.ask(scan.end("aborted"), peer=stranger)),
            ):
                assert code in ("not-owner", "no-run")
            assert refusal(await one.start(scan, stranger)) == "not-owner"
            assert refusal(await one.start(scan, stranger, "a secret that was guessed")) == "not-owner"
            assert refusal(await one.start(other, stranger)) == "busy"
            await one.volumes(scan, range(3, 24))
            assert await one.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)
            assert one.journal(scan) == {index: scan.voxels(index).tobytes() for index in range(24)}

    asyncio.run(run())


def test_the_owner_comes_back_on_another_connection_with_its_secret(
    tiny_bundle: Path, scan: Scan, tmp_path: Path
) -> None:
    again = Peer(key="scanner", connection=b"9")

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan, secret="the owner's own secret")
            await one.volumes(scan, range(3))
            assert refusal(await one.volume(scan, 3, again)) == "no-run"
            reply = await one.start(scan, again, "the owner's own secret")
            assert reply == wire.RunAccepted(run_id=scan.run_id, held=[(0, 3)])
            assert isinstance(await one.volume(scan, 3, again), wire.Ack)
            assert (
                refusal(await one.volume(scan, 4)) == "no-run"
            )  # the old connection is no longer the owner's
        info = read_run_file(tmp_path / scan.run_id)
        assert info.owner
        assert info.owner.key == "scanner"
        assert "the owner's own secret" not in (tmp_path / scan.run_id / "run.json").read_text()

    asyncio.run(run())


def test_a_scanner_that_was_started_anew_takes_its_run_over_once_the_old_one_is_silent(
    tiny_bundle: Path, scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan, secret="the first process")
            await one.volumes(scan, range(3))
            anew = Peer(key="scanner", connection=b"2")
            assert refusal(await one.start(scan, anew, "the second process")) == "not-owner"
            one.now_s += STALE_TR * scan.start.tr_s + 0.1
            reply = await one.start(scan, anew, "the second process")
            assert reply == wire.RunAccepted(run_id=scan.run_id, held=[(0, 3)])
            assert isinstance(await one.volume(scan, 3, anew), wire.Ack)

    asyncio.run(run())


def test_another_run_takes_the_place_of_one_whose_scanner_is_gone(
    tiny_bundle: Path, make_scan: type[Scan], tmp_path: Path
) -> None:
    scan, other = make_scan(changes={"tr_s": 1.3333}), make_scan(run_id="other")

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            one.now_s = perf_counter() - 3600  # an hour ago
            await one.start(scan)
            await one.volumes(scan, range(3))
            assert isinstance(await one.start(other), wire.RunAccepted)
            *_, last = read_journal(tmp_path / scan.run_id / JOURNAL)
            assert wire.decode_to_runtime(last.header) == scan.end("given_up")

    asyncio.run(run())


def test_another_start_of_the_same_run_is_refused(tiny_bundle: Path, scan: Scan, tmp_path: Path) -> None:
    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
            longer = msgspec.structs.replace(scan.start, n_volumes=30)
            assert refusal(await one.ask(longer)) == "run-start"

    asyncio.run(run())


def test_a_killed_recorder_goes_on_where_it_was_and_a_torn_record_is_cut(
    tiny_bundle: Path, scan: Scan, make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan, secret="the owner's own secret")
            await one.ask(scan.marker(2), make_picture(2))
            await one.volumes(scan, range(5))
        journal = tmp_path / scan.run_id / JOURNAL
        journal.write_bytes(journal.read_bytes()[:-9])  # volume 4 was torn, and not acknowledged then
        async with bench(tiny_bundle, tmp_path, adopt=True) as two:
            assert two.recorder.recording.is_open
            assert refusal(await two.volume(scan, 4)) == "no-run"
            assert refusal(await two.start(scan, STRANGERS[0])) == "not-owner"
            reply = await two.start(scan, secret="the owner's own secret")
            assert reply == wire.RunAccepted(run_id=scan.run_id, held=[(0, 4)])
            assert refusal(await two.ask(scan.marker(2), make_picture(1))) == "picture"
            assert isinstance(await two.ask(scan.marker(2), make_picture(2)), wire.MarkerAck)
            await two.volumes(scan, range(4, 24))
            assert sorted(two.journal(scan)) == list(range(24))

    asyncio.run(run())


def test_a_run_again_after_its_end_is_another_take(tiny_bundle: Path, scan: Scan, tmp_path: Path) -> None:
    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            for take in ("", "_take-2"):
                assert await one.start(scan) == wire.RunAccepted(run_id=scan.run_id, held=[])
                await one.volumes(scan, range(3))
                await one.ask(scan.end("aborted"))
                assert one.recorder.recording.run_folder == str(tmp_path / f"{scan.run_id}{take}")

    asyncio.run(run())


def test_a_run_of_another_bundle_is_not_gone_on_with(
    tiny_bundle: Path, scan: Scan, make_tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_tiny_bundle(tmp_path / "other", seed=1)

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path / "out") as one:
            await one.start(scan)
            await one.volumes(scan, range(3))
        async with bench(other, tmp_path / "out", adopt=True) as two:
            assert not two.recorder.recording.is_open
            assert await two.start(scan) == wire.RunAccepted(run_id=scan.run_id, held=[])
            assert (two.recorder.recording.run_folder or "").endswith("_take-2")

    asyncio.run(run())


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in --out", "in --fallback-out"])
def test_a_deleted_run_folder_loses_no_volume_that_was_acknowledged(
    tiny_bundle: Path, scan: Scan, tmp_path: Path, elsewhere: bool
) -> None:
    out, fallback = tmp_path / "out", tmp_path / "fallback"

    async def run() -> None:
        async with bench(tiny_bundle, out, fallback_out=fallback if elsewhere else None) as one:
            await one.start(scan)
            await one.volumes(scan, range(5))
            shutil.rmtree(out / scan.run_id)
            assert refusal(await one.volume(scan, 5)) == "no-run"
            assert "was deleted" in one.recorder.recording.message
            reply = await one.start(scan)
            assert isinstance(reply, wire.RunAccepted)
            assert reply.held in ([(0, 5)], [(0, 6)])
            await one.volumes(scan, range(5, 24))
            assert await one.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)
            saved = one.journal(scan, fallback if elsewhere else out)
            assert saved == {index: scan.voxels(index).tobytes() for index in range(24)}

    asyncio.run(run())


def test_what_another_program_cut_off_a_journal_is_asked_for_again(
    tiny_bundle: Path, scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, range(5))
            journal = tmp_path / scan.run_id / JOURNAL
            with journal.open("r+b") as file:
                file.truncate(journal.stat().st_size // 2)
            assert refusal(await one.volume(scan, 5)) == "no-run"
            reply = await one.start(scan)
            assert isinstance(reply, wire.RunAccepted)
            assert reply.held == [(0, 2)]
            await one.volumes(scan, range(2, 24))
            assert one.journal(scan) == {index: scan.voxels(index).tobytes() for index in range(24)}

    asyncio.run(run())


def test_a_run_that_cannot_be_saved_is_let_go_of_and_the_next_one_starts(
    tiny_bundle: Path, scan: Scan, make_scan: type[Scan], tmp_path: Path
) -> None:
    out, blocked = tmp_path / "out", tmp_path / "file"
    blocked.write_text("no folder can be made here")

    async def run() -> None:
        async with bench(tiny_bundle, out, fallback_out=blocked) as one:
            await one.start(scan)
            await one.volumes(scan, range(5))
            shutil.rmtree(out / scan.run_id)
            assert refusal(await one.volume(scan, 5)) == "runtime"
            assert "let go of" in one.recorder.recording.alarm
            other = make_scan(run_id="other")
            assert isinstance(await one.start(other), wire.RunAccepted)
            await one.volumes(other, [0])
            assert not one.recorder.recording.alarm

    asyncio.run(run())


def test_a_disk_that_does_not_take_a_volume_is_an_alarm_and_nothing_is_acknowledged(
    tiny_bundle: Path, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise RecordError("cannot write: No space left on device")

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, [0])
            with monkeypatch.context() as patch:
                patch.setattr(RunJournal, "add_volume", fail)
                reply = await one.volume(scan, 1)
            assert isinstance(reply, wire.Refused)
            assert (reply.code, reply.index) == ("runtime", 1)
            assert "No space left" in one.recorder.recording.alarm
            await one.volumes(scan, [1, 2])
            assert not one.recorder.recording.alarm

    asyncio.run(run())


def test_a_folder_of_runs_that_cannot_be_read_ends_nothing(
    tiny_bundle: Path, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise PermissionError(13, "Permission denied")

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            with monkeypatch.context() as patch:
                patch.setattr(recorder_module, "takes_of", fail)
                assert refusal(await one.start(scan)) == "runtime"
                assert refusal(await one.ask(scan.end())) == "runtime"
            assert isinstance(await one.start(scan), wire.RunAccepted)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("changed", "code"),
    [({"index": 24}, "index"), ({"crc32": 0}, "checksum"), ({"run_id": "another"}, "no-run")],
)
def test_a_volume_that_does_not_fit_is_refused(
    tiny_bundle: Path, scan: Scan, tmp_path: Path, changed: dict[str, Any], code: str
) -> None:
    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
            message = msgspec.structs.replace(scan.volume(0), **changed)
            voxels = scan.voxels(0).tobytes()
            if "crc32" not in changed:
                message = wire.with_checksum(message, voxels)
            assert refusal(await one.ask(message, voxels)) == code
            assert one.journal(scan) == {}

    asyncio.run(run())


def test_a_buffer_of_another_size_and_a_picture_that_is_none_are_refused(
    tiny_bundle: Path, scan: Scan, make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
            short = scan.voxels(0).tobytes()[:-1]
            message = wire.with_checksum(scan.volume(0), short)
            assert refusal(await one.ask(message, short)) == "size"
            for picture in (b"GIF89a", make_picture(1)[:-3]):
                assert refusal(await one.ask(scan.marker(1), picture)) == "picture"
            assert refusal(await one.ask(scan.marker(24), make_picture(1))) == "index"

    asyncio.run(run())


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted on Linux")


def n_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_run_that_could_not_be_saved_is_saved_once_there_is_room(
    tiny_bundle: Path, scan: Scan, tmp_path: Path
) -> None:
    out, blocked = tmp_path / "out", tmp_path / "file"
    blocked.write_text("no folder can be made here")

    async def run() -> None:
        async with bench(tiny_bundle, out, fallback_out=blocked) as one:
            await one.start(scan)
            await one.volumes(scan, range(5))
            shutil.rmtree(out / scan.run_id)
            assert refusal(await one.volume(scan, 5)) == "runtime"
            assert refusal(await one.start(scan)) == "runtime"
            blocked.unlink()
            reply = await one.start(scan)
            assert isinstance(reply, wire.RunAccepted)
            assert reply.held in ([(0, 5)], [(0, 6)])
            await one.volumes(scan, range(5, 24))
            assert sorted(one.journal(scan, blocked)) == list(range(24))
            assert not one.recorder.recording.alarm

    asyncio.run(run())


@pytest.mark.parametrize("is_link", [False, True], ids=["by an older copy", "by a link"])
def test_a_journal_that_was_replaced_loses_no_volume_that_was_acknowledged(
    tiny_bundle: Path, scan: Scan, tmp_path: Path, is_link: bool
) -> None:
    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, range(3))
            journal, copy = tmp_path / scan.run_id / JOURNAL, tmp_path / "copy"
            shutil.copy(journal, copy)
            await one.volumes(scan, range(3, 6))
            if is_link:
                journal.unlink()
                journal.symlink_to(copy)
            else:
                copy.replace(journal)
            assert refusal(await one.volume(scan, 6)) == "no-run"
            reply = await one.start(scan)
            assert isinstance(reply, wire.RunAccepted)
            assert reply.held in ([(0, 6)], [(0, 7)])

    asyncio.run(run())


def test_a_run_that_was_saved_elsewhere_is_gone_on_with_by_the_next_recorder(
    tiny_bundle: Path, scan: Scan, tmp_path: Path
) -> None:
    out, fallback = tmp_path / "out", tmp_path / "fallback"

    async def run() -> None:
        async with bench(tiny_bundle, out, fallback_out=fallback) as one:
            await one.start(scan)
            await one.volumes(scan, range(5))
            shutil.rmtree(out / scan.run_id)
            assert refusal(await one.volume(scan, 5)) == "no-run"
        for adopt in (True, False):
            async with bench(tiny_bundle, out, fallback_out=fallback, adopt=adopt) as two:
                assert two.recorder.recording.is_open == adopt
                reply = await two.start(scan)
                assert isinstance(reply, wire.RunAccepted)
                assert reply.held in ([(0, 5)], [(0, 6)])
                assert two.recorder.recording.run_folder == str(fallback / scan.run_id)

    asyncio.run(run())


def test_the_owner_ends_a_run_that_was_left_open_with_another_plan(
    tiny_bundle: Path, scan: Scan, tmp_path: Path
) -> None:
    """As the recorder's own sources do, for scanners that send neither starts nor ends."""
    longer = msgspec.structs.replace(scan.start, n_volumes=30)

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, range(3))
        async with bench(tiny_bundle, tmp_path, adopt=True) as two:
            assert refusal(await two.ask(longer)) == "run-start"
            assert await two.ask(scan.end("aborted")) == wire.RunClosed(run_id=scan.run_id)
            assert await two.ask(longer) == wire.RunAccepted(run_id=scan.run_id, held=[])

    asyncio.run(run())


def test_a_run_whose_journal_holds_no_messages_keeps_no_recorder_from_starting(
    tiny_bundle: Path, scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
        with Folder.open(tmp_path / scan.run_id, to_write=True) as folder:
            with contextlib.closing(Journal(folder)) as journal:
                journal.append(b"no message", b"", 0.0)
        async with bench(tiny_bundle, tmp_path, adopt=True) as two:
            assert await two.start(scan) == wire.RunAccepted(run_id=scan.run_id, held=[])
            assert two.recorder.recording.run_folder == str(tmp_path / f"{scan.run_id}_take-2")

    asyncio.run(run())


@needs_proc
def test_runs_that_fail_keep_no_descriptors(
    tiny_bundle: Path, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RecordError("the disk does not take it")

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path / "other") as other, bench(tiny_bundle, tmp_path) as one:
            before = n_descriptors()
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "append", fail)
                for _ in range(3):
                    assert refusal(await one.start(scan)) == "runtime"
            assert n_descriptors() == before
            await other.start(scan)
            before = n_descriptors()
            for _ in range(3):
                with pytest.raises(RecordError, match="in use"):  # the other recorder has it
                    RunJournal.reopen(tmp_path / "other" / scan.run_id)
            assert n_descriptors() == before

    asyncio.run(run())


@needs_proc
def test_a_run_whose_end_was_not_synced_keeps_no_descriptors(
    tiny_bundle: Path, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RecordError("cannot sync")

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            before = n_descriptors()
            await one.start(scan)
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "sync", fail)
                assert refusal(await one.ask(scan.end())) == "runtime"
            assert await one.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)
            assert n_descriptors() == before

    asyncio.run(run())


def test_a_folder_that_is_removed_while_a_run_begins_in_it_ends_nothing(
    tiny_bundle: Path, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RecordGoneError("it was deleted")

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "append", fail)
                assert refusal(await one.start(scan)) == "runtime"
            assert isinstance(await one.start(scan), wire.RunAccepted)

    asyncio.run(run())


def test_a_torn_record_that_was_seen_is_not_taken_for_the_one_in_its_place(tmp_path: Path) -> None:
    """The decoder reads on while a recorder dies within a record and the next one cuts that off."""
    with Folder.create(tmp_path / "run") as folder, contextlib.closing(Journal(folder)) as journal:
        journal.append(b"first", b"1", 0.0)
        end = (tmp_path / "run" / JOURNAL).stat().st_size
        with JournalReader(tmp_path / "run" / JOURNAL) as reader:
            assert reader.read()
            journal.append(b"torn", bytes(500), 0.0)
            os.truncate(tmp_path / "run" / JOURNAL, end + 300)
            assert reader.read() is None
            journal.cut(end)
            journal.append(b"second", b"2", 0.0)
            journal.append(b"third", bytes(500), 0.0)
            found = [entry.header for entry in (reader.read(), reader.read()) if entry]
            assert found == [b"second", b"third"]


class SilentScanner:
    """Sends neither starts nor ends, as those of Pyneal's and AFNI's protocols."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._queue: asyncio.Queue[run_boundaries.Scan | RunOver] = asyncio.Queue()

    async def start(self) -> str:
        return "nowhere"

    async def scans(self) -> AsyncIterator[run_boundaries.Scan | RunOver]:
        while True:
            yield await self._queue.get()

    async def stop(self) -> None:
        pass

    def end(self) -> None:
        self._queue.put_nowait(RunOver())

    async def send(self, index: int) -> wire.Ack | wire.Refused:
        answer: asyncio.Future[wire.Ack | wire.Refused] = asyncio.get_running_loop().create_future()

        async def take(message: wire.Ack | wire.Refused) -> None:
            answer.set_result(message)

        start = self._scan.start
        self._queue.put_nowait(
            run_boundaries.Scan(
                index=index,
                shape=start.shape,
                affine=start.affine,
                dtype=start.dtype,
                payload=memoryview(self._scan.voxels(index).tobytes()),
                received_s=perf_counter(),
                answer=take,
                tr_s=start.tr_s,
            )
        )
        return await asyncio.wait_for(answer, PATIENCE_S)


def test_a_run_of_a_scanner_that_sends_no_start_goes_on_after_its_folder_was_deleted(
    tiny_bundle: Path, scan: Scan, tmp_path: Path
) -> None:
    plan = Plan(subject=1, run_id=scan.run_id, n_volumes=scan.n_volumes, tr_s=scan.start.tr_s)

    async def run() -> None:
        scanner = SilentScanner(scan)
        async with bench(tiny_bundle, tmp_path, source=RunBoundarySource(scanner, plan)) as one:
            for index in range(8):
                if index == 5:
                    shutil.rmtree(tmp_path / scan.run_id)
                assert isinstance(await scanner.send(index), wire.Ack)
            scanner.end()
            async with asyncio.timeout(PATIENCE_S):
                while one.recorder.recording.is_open:
                    await asyncio.sleep(0.01)
            assert one.journal(scan) == {index: scan.voxels(index).tobytes() for index in range(8)}
            assert has_ended(tmp_path / scan.run_id)

    asyncio.run(run())


def test_a_folder_that_was_deleted_before_the_end_of_its_run_makes_no_second_take(
    tiny_bundle: Path, scan: Scan, tmp_path: Path
) -> None:
    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, range(24))
            shutil.rmtree(tmp_path / scan.run_id)
            # Otherwise the scanner would send its start again, and then all volumes.
            assert await one.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)
            assert sorted(one.journal(scan)) == list(range(24))
            assert has_ended(tmp_path / scan.run_id)

    asyncio.run(run())


def test_a_run_that_has_ended_is_not_unfinished_though_no_decoder_has_closed_it(
    tiny_bundle: Path, scan: Scan, tmp_path: Path
) -> None:
    """A folder's files would otherwise be sent again, as another take."""
    _, sha256 = read_spec(tiny_bundle)

    async def run() -> None:
        assert unfinished_run(tmp_path, sha256) is None
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
            assert unfinished_run(tmp_path, sha256) == scan.start
            await one.ask(scan.end())
            assert read_run_file(tmp_path / scan.run_id).state == "open"
            assert unfinished_run(tmp_path, sha256) is None

    asyncio.run(run())


def test_no_stranger_ends_a_run_whose_owner_has_yet_to_come_back_to_a_recorder_that_was_killed(
    tiny_bundle: Path, scan: Scan, make_scan: type[Scan], tmp_path: Path
) -> None:
    other = make_scan(run_id="other", n_volumes=24)

    async def run() -> None:
        async with bench(tiny_bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, range(3))
        async with bench(tiny_bundle, tmp_path, adopt=True) as two:
            assert refusal(await two.start(other, STRANGERS[0])) == "busy"
            assert await two.start(scan) == wire.RunAccepted(run_id=scan.run_id, held=[(0, 3)])
        async with bench(tiny_bundle, tmp_path, adopt=True) as three:  # the owner stays away
            three.recorder._adopted_s -= STALE_TR * scan.start.tr_s
            assert isinstance(await three.start(other, STRANGERS[0]), wire.RunAccepted)

    asyncio.run(run())
