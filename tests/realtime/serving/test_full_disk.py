"""A full disk stops the recording, with an alarm; what was acknowledged is there, and the rest is not."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.errors import RecordError
from realtime.record import tables
from realtime.record.journal import JOURNAL, Journal, read_journal
from realtime.record.reader import read_recorded
from realtime.record.storage import Folder

from .conftest import Client, Scan, Served, closed
from .in_process import Lockstep, bench, decoded

RUN_ID = "sub-01_ses-nsd01_task-nsdcore_run-01"
N_VOLUMES = 60


@contextlib.contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Path]:
    """A real file system of this size; the test is skipped where none can be made."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes},mode=700", "none", str(folder)]
    if os.name != "posix" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def limit_files(pid: int, n_bytes: int) -> None:
    """Let no file of a process grow beyond this: a write gives up half-way, as on a full disk."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))


def fill(disk: Path) -> Path:
    """Leave no room on a disk but the rest of each file's last page; returns what to remove again."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


@contextlib.contextmanager
def small_files(n_bytes: int) -> Iterator[None]:
    """The same for this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_files(os.getpid(), n_bytes)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def payloads(folder: Path) -> list[tuple[int, bytes]]:
    """Of the volumes in a run's journal, by index, in order of arrival."""
    entries = [(wire.decode_to_runtime(each.header), each.payload) for each in read_journal(folder / JOURNAL)]
    return [(message.index, payload) for message, payload in entries if isinstance(message, wire.Volume)]


def journaled(folder: Path) -> list[int]:
    return [index for index, _ in payloads(folder)]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
def test_nothing_after_the_full_disk_is_acknowledged_and_all_before_it_outlives_a_kill(
    serve: Callable[..., Served], connect: Callable[..., Client], make_scan: type[Scan]
) -> None:
    scan = make_scan(n_volumes=N_VOLUMES)
    served = serve()
    client = connect(served.address)
    client.ask(scan.start)
    limit_files(served.child("record").pid, 10_000)
    replies = [client.send_volume(scan, index) for index in range(N_VOLUMES)]
    acknowledged = [reply.index for reply in replies if isinstance(reply, wire.Ack)]
    refused = [reply for reply in replies if isinstance(reply, wire.Refused)]
    assert 0 < len(acknowledged) < N_VOLUMES
    assert acknowledged == list(range(len(acknowledged)))
    assert [reply.index for reply in refused] == list(range(len(acknowledged), N_VOLUMES))
    assert {reply.code for reply in refused} == {"runtime"}
    folder = served.run_folder(scan)
    assert (folder / "volumes.journal").stat().st_size <= 10_000
    assert journaled(folder) == acknowledged
    assert "recording has stopped after volume" in served.log()
    served.kill()
    assert journaled(folder) == acknowledged
    again = serve(source=served.address)
    reply = connect(again.address).ask(scan.start)
    assert reply == wire.RunAccepted(run_id=scan.run_id, held=[(0, len(acknowledged))])
    assert payloads(folder) == [(index, scan.voxels(index).tobytes()) for index in acknowledged]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
def test_a_run_goes_on_when_there_is_room_again_and_misses_nothing(
    serve: Callable[..., Served], tiny_nsd: Path, account_of: Callable[[Path], dict[str, Any]]
) -> None:
    served = serve()
    command = [sys.executable, "-m", "sim", "replay", "--nsd", str(tiny_nsd), "--connect", served.address]
    with subprocess.Popen([*command, "--speed", "100"], stderr=subprocess.PIPE, text=True) as scanner:
        recorder = served.child("record").pid
        limit_files(recorder, 60_000)
        assert scanner.stderr is not None
        said = ""
        while "the runtime refuses for now: cannot write" not in said:
            said = scanner.stderr.readline()
            assert said, "the scanner ended"
        limit_files(recorder, resource.RLIM_INFINITY)
        assert "run complete: 225 volumes acknowledged" in scanner.communicate()[1]
    summary = account_of(closed(served.out / RUN_ID))
    assert served.interrupt() == 0
    assert (summary["received"], summary["missing"]) == (225, 0)
    recorded = read_recorded(served.out / RUN_ID)
    assert [row.volume for row in recorded.rows] == list(range(225))
    assert len(recorded.pictures) == 62
    assert "recording goes on after volume" in served.log()


def test_listeners_see_the_alarm_until_the_disk_takes_a_volume_again(
    tiny_bundle: Path, make_scan: type[Scan], tmp_path: Path
) -> None:
    scan, bundle = make_scan(n_volumes=N_VOLUMES), Bundle.open(tiny_bundle)

    async def run(disk: Path) -> None:
        async with bench(bundle, disk) as one:
            await one.start(scan)
            await one.volumes(scan, range(4))
            assert one.recording.alarm == ""
            ballast = fill(disk)
            held = 4
            while isinstance(reply := await one.volume(scan, held), wire.Ack):  # in the last page's rest
                held += 1
            assert isinstance(reply, wire.Refused)
            assert (reply.code, reply.index) == ("runtime", held)
            assert "No space left on device" in one.recording.alarm
            assert one.recording.alarm.startswith("recording has stopped after volume")
            assert journaled(disk / scan.run_id) == list(range(held))
            ballast.unlink()
            await one.volumes(scan, range(held, N_VOLUMES))
            assert one.recording.alarm == ""
            assert await one.source.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)
            recorded = await decoded(one.ended[0], bundle)
            assert recorded.received == set(range(N_VOLUMES))
            assert sorted(row.volume for row in recorded.rows) == list(range(N_VOLUMES))

    with small_disk(tmp_path / "disk", 2**20) as disk:
        asyncio.run(run(disk))


def test_a_run_that_closes_once_there_is_room_leaves_no_alarm_behind(
    tiny_bundle: Path, make_scan: type[Scan], tmp_path: Path
) -> None:
    scan, bundle = make_scan(n_volumes=8), Bundle.open(tiny_bundle)

    async def run() -> None:
        async with bench(bundle, tmp_path) as one:
            await one.start(scan)
            await one.volumes(scan, range(8))
            size = (tmp_path / scan.run_id / JOURNAL).stat().st_size
            with small_files(size + 10):  # room for a part of the end
                assert isinstance(await one.source.ask(scan.end()), wire.Refused)
            assert os.strerror(errno.EFBIG) in one.recording.alarm
            assert one.ended == []
            assert await one.source.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)
            assert (one.recording.is_open, one.recording.alarm) == (False, "")
            rows = (await decoded(one.ended[0], bundle)).rows
            assert sorted(row.volume for row in rows) == list(range(8))

    asyncio.run(run())


def journal_in(folder: Path) -> Journal:
    return Journal(Folder.open(folder, to_write=True))


def test_a_journal_on_a_full_disk_is_whole_up_to_the_last_volume_that_fitted(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**16) as disk:
        journal = journal_in(disk)
        payload = bytes(5_000)
        while os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > len(payload):
            journal.append(b"header", payload, 0.0)
        taken = list(read_journal(journal.path))
        assert len(taken) > 5
        with pytest.raises(RecordError, match="No space left on device"):
            journal.append(b"header", 2 * payload, 0.0)
        assert list(read_journal(journal.path)) == taken
        journal.append(b"small", b"fits", 0.0)
        assert [entry.payload for entry in read_journal(journal.path)][-1] == b"fits"
        journal.close()


def test_a_journal_takes_nothing_behind_a_part_that_it_cannot_take_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot_cut(*_: object) -> None:
        """As on a full copy-on-write file system."""
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = journal_in(tmp_path)
    journal.append(b"header", b"whole", 0.0)
    size = journal.path.stat().st_size
    with monkeypatch.context() as broken:
        broken.setattr(os, "ftruncate", cannot_cut)
        with small_files(size + 100), pytest.raises(RecordError, match="cannot cut"):
            journal.append(b"header", bytes(500), 0.0)
        assert journal.path.stat().st_size == size + 100
        with pytest.raises(RecordError, match="cannot cut"):  # there is room again, but the part still stands
            journal.append(b"header", b"not taken", 0.0)
    journal.append(b"header", b"taken", 0.0)
    journal.close()
    assert [entry.payload for entry in read_journal(journal.path)] == [b"whole", b"taken"]


def test_a_run_that_cannot_begin_leaves_no_folder_behind(
    tiny_bundle: Path, make_scan: type[Scan], tmp_path: Path
) -> None:
    scan = make_scan()
    with small_disk(tmp_path / "disk", 8_192) as disk:
        (disk / "ballast").write_bytes(bytes(4_096))
        with pytest.raises(RecordError, match="No space left on device"):
            Lockstep.begin(disk, Bundle.open(tiny_bundle), scan.start)
        assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_rows_that_found_no_room_are_written_with_the_next(
    tiny_bundle: Path, make_scan: type[Scan], tmp_path: Path
) -> None:
    one = Lockstep.begin(tmp_path, Bundle.open(tiny_bundle), make_scan(n_volumes=N_VOLUMES).start)
    table = next(one.path.glob("*decoding.tsv"))
    with small_files(table.stat().st_size + 100):  # room for a row and a part of the next
        for volume in range(5):
            one.run.skip(volume, "to write a row")
        assert "results are not recorded" in one.run.alarm
    assert len(one.run.folder.rows()) < 5
    one.run.skip(5, "to write a row")
    assert one.run.alarm == ""
    one.run.folder.close()
    one.let_go()
    assert [row.volume for row in read_recorded(one.path).rows] == list(range(6))


@pytest.mark.parametrize("n_bytes", [0, 50], ids=["nothing", "a part of a row"])
def test_rows_of_a_bank_that_found_no_room_are_written_later(
    tiny_bank: Path, make_scan: type[Scan], tmp_path: Path, n_bytes: int
) -> None:
    one = Lockstep.begin(tmp_path, Bundle.open(tiny_bank), make_scan().start)
    table = next(one.path.glob("*decoding.tsv"))
    with small_files(table.stat().st_size + n_bytes):
        for volume in (9, 12):
            row = tables.Row(volume=volume, state="skipped", decoder="after-1")
            with pytest.raises(RecordError, match="cannot write"):
                one.run.folder.write_row(row)
    one.run.folder.close()
    one.let_go()
    assert [row.volume for row in read_recorded(one.path).rows_by("after-1")] == [9, 12]
