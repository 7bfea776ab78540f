from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.errors import RecordError
from realtime.events import DecoderUsed, Frame, LatencyMs
from realtime.record import tables
from realtime.record.folder import RunFolder
from realtime.record.journal import JOURNAL, MAGIC, Journal, read_journal
from realtime.record.reader import read_recorded
from realtime.record.run_journal import RunJournal, open_folders
from realtime.record.run_json import (
    EngineUsed,
    RunFile,
    bids_name,
    new_run_file,
    read_run_file,
    table_path,
    takes_of,
)
from realtime.record.storage import Folder
from realtime.runs.open import open_run

from .conftest import Scan
from .in_process import Lockstep

LATENCY = LatencyMs(journal=0.25, preprocess=1.5, wait=0.125, brain=2.0, denoise=80.0, vae=4.0, total=87.875)


def run_file(scan: Scan) -> RunFile:
    return new_run_file(
        scan.start,
        bundle_name="tiny",
        bundle_sha256="ab" * 32,
        decoders=(DecoderUsed(name="general", window_delay_volumes=8),),
        seed=0,
    )


@pytest.fixture
def journal(make_scan: type[Scan], tmp_path: Path) -> Iterator[RunJournal]:
    run = RunJournal.create(tmp_path, run_file(make_scan()))
    yield run
    run.abandon()


@pytest.fixture
def folder(journal: RunJournal) -> Iterator[RunFolder]:
    run = RunFolder.open(journal.path, journal.info.decoders)
    yield run
    run.let_go()


def journal_at(path: Path) -> Journal:
    return Journal(Folder.open(path.parent, to_write=True), path.name)


def frame(volume: int, shown_onset: int | None = None) -> Frame:
    return Frame(
        run_id="sub-01_ses-nsd01_task-nsdcore_run-01",
        volume=volume,
        decoder="general",
        window=(volume - 5, volume + 1),
        state="trusted",
        sampler="ddim-4",
        latency_ms=LATENCY,
        shown_onset=shown_onset,
    )


@settings(max_examples=40, deadline=None)
@given(
    payloads=st.lists(st.binary(max_size=200), min_size=1, max_size=6),
    cut=st.integers(min_value=0),
    tail=st.sampled_from(["cut", "whole"]),
)
def test_a_journal_torn_anywhere_keeps_every_whole_record(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], cut: int, tail: str
) -> None:
    path = tmp_path_factory.mktemp("journal") / "volumes.journal"
    journal = journal_at(path)
    ends = [path.stat().st_size]
    for number, payload in enumerate(payloads):
        journal.append(b"header %d" % number, payload, 1.5)
        ends.append(path.stat().st_size)
    journal.close()
    data = path.read_bytes()
    size = cut % (len(data) + 1) if tail == "cut" else len(data)
    path.write_bytes(data[:size])
    expected = sum(end <= size for end in ends[1:])
    entries = list(read_journal(path))
    assert [entry.payload for entry in entries] == payloads[:expected]
    assert [entry.header for entry in entries] == [b"header %d" % n for n in range(expected)]
    journal = journal_at(path)
    journal.cut(entries[-1].end if entries else 0)
    journal.append(b"after", b"the crash", 2.5)
    journal.close()
    assert [entry.payload for entry in read_journal(path)] == [*payloads[:expected], b"the crash"]


def test_a_changed_byte_in_the_last_record_drops_it_and_earlier_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "volumes.journal"
    journal = journal_at(path)
    for number in range(3):
        journal.append(b"header", bytes([number]) * 50, 0.0)
    journal.close()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert len(list(read_journal(path))) == 2
    data[len(MAGIC) + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecordError, match="damaged at byte"):
        list(read_journal(path))


def test_a_damaged_length_is_no_torn_record(tmp_path: Path) -> None:
    """What comes after it was acknowledged, and would be cut off."""
    path = tmp_path / "volumes.journal"
    journal = journal_at(path)
    starts = [path.stat().st_size]
    for number in range(4):
        journal.append(b"header", bytes([number]) * 100, 1.5)
        starts.append(path.stat().st_size)
    journal.close()
    content = bytearray(path.read_bytes())
    content[starts[1] + 8 + 3] ^= 1  # of the second record's payload: 16 MB longer
    path.write_bytes(content)
    with pytest.raises(RecordError, match=f"damaged at byte {starts[1]}: a record overlaps the next"):
        list(read_journal(path))
    path.write_bytes(content[: starts[2]])  # the last one may be torn
    assert len(list(read_journal(path))) == 1


def test_zeros_of_a_power_cut_may_begin_within_a_record(tmp_path: Path) -> None:
    path = tmp_path / "volumes.journal"
    journal = journal_at(path)
    ends = []
    for number in range(4):
        journal.append(b"header", bytes([number + 1]) * 100, 1.5)
        ends.append(path.stat().st_size)
    journal.close()
    content = path.read_bytes()
    path.write_bytes(content[: ends[2] - 50] + bytes(ends[3] - ends[2] + 50))
    assert [entry.end for entry in read_journal(path)] == ends[:2]


@pytest.mark.parametrize("n_bytes", [1, 100, 3_000_000])
def test_zeros_that_a_power_cut_leaves_are_a_torn_record(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "volumes.journal"
    journal = journal_at(path)
    journal.append(b"header", b"payload", 1.5)
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(n_bytes))
    assert [entry.end for entry in read_journal(path)] == [len(whole)]
    path.write_bytes(whole + bytes(n_bytes) + b"x" * 100)
    with pytest.raises(RecordError, match="damaged"):
        list(read_journal(path))


def test_another_file_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "volumes.journal"
    path.write_bytes(b"something else entirely, and long enough")
    with pytest.raises(RecordError, match="expected a run's journal"):
        list(read_journal(path))


def test_a_disk_that_cannot_lock_is_not_called_another_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("realtime.record.journal.lock", refuse)
    with pytest.raises(RecordError, match="cannot lock .*: No locks available; choose an --out"):
        journal_at(tmp_path / "volumes.journal")


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "volumes.journal")
    with pytest.raises(RecordError, match="in use by another runtime"):
        journal_at(tmp_path / "volumes.journal")
    journal.close()
    journal_at(tmp_path / "volumes.journal").close()


def test_the_journal_holds_what_came_byte_for_byte_and_a_checksum_of_it(
    journal: RunJournal, make_scan: type[Scan]
) -> None:
    scan = make_scan()
    voxels = scan.voxels(3).tobytes()
    assert journal.add_volume(scan.volume(3), memoryview(voxels), 1.5)
    start, volume = read_journal(journal.path / JOURNAL)
    assert wire.decode_to_runtime(start.header) == scan.start
    message = wire.decode_to_runtime(volume.header)
    assert message == wire.with_checksum(scan.volume(3), memoryview(voxels))
    assert (volume.payload, volume.received_utc_s) == (voxels, 1.5)
    wire.verify_checksum(message, memoryview(voxels))


def test_a_run_folder_is_a_described_derivative(folder: RunFolder) -> None:
    name = "sub-01_ses-nsd01_task-nsdcore_run-01"
    description = json.loads((folder.path / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "realtime-dynadiff"
    for table_name in (f"{name}_desc-dynadiff_decoding", f"{name}_desc-shown_events"):
        columns = (folder.path / f"{table_name}.tsv").read_text().splitlines()[0].split("\t")
        sidecar = json.loads((folder.path / f"{table_name}.json").read_text())
        assert sidecar.keys() == {"Description", "Sources", *columns}
        assert all(sidecar[column]["Description"] for column in columns)
        assert all(sidecar[column]["Units"] == "ms" for column in columns if column.endswith("_ms"))


def test_rows_and_frames_are_read_back_as_written(
    folder: RunFolder, make_scan: type[Scan], make_picture: Callable[..., bytes]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    rows = [
        tables.Row(volume=4, state="warming", reason="no full window\tyet\n", decoder="general"),
        tables.frame_row(
            frame(20, shown_onset=12), folder.write_frame(20, "general", image), repaired_voxels=2
        ),
    ]
    for row in rows:
        folder.write_row(row)
    folder.write_shown(make_scan().marker(12), make_picture(1))
    folder.close()
    recorded = read_recorded(folder.path)
    assert recorded.info.state == "closed"
    assert recorded.rows[0].reason == "no full window yet"
    assert recorded.rows[1] == rows[1]
    assert tables.row_frame(recorded.rows[1], "sub-01_ses-nsd01_task-nsdcore_run-01") == frame(20, 12)
    assert tables.row_frame(recorded.rows[0], "r") is None
    (trial,) = recorded.trials()
    assert (trial.picture.onset_volume, trial.picture.name, trial.row.volume) == (12, "picture 12", 20)
    assert np.array_equal(trial.decoded_image(), image)


def test_a_torn_row_and_a_frame_without_a_row_go_and_the_rest_stays(
    folder: RunFolder, make_scan: type[Scan]
) -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    folder.write_row(tables.frame_row(frame(8), folder.write_frame(8, "general", image), 0))
    folder.write_frame(9, "general", image)
    folder.let_go()
    table_file = next(folder.path.glob("*decoding.tsv"))
    with table_file.open("ab") as file:
        file.write(b"9\tdecoded\tn/a\tframes/00")
    again = RunFolder.open(folder.path, folder.info.decoders)
    assert [row.volume for row in again.rows()] == [8]
    again.write_row(tables.Row(volume=9, state="skipped", reason="restart", decoder="general"))
    again.close()
    assert [row.volume for row in read_recorded(folder.path).rows] == [8, 9]
    assert [path.name for path in (folder.path / "frames").iterdir()] == ["000008.png"]


def test_a_run_whose_disk_fails_when_it_ends_goes_on(
    journal: RunJournal, folder: RunFolder, make_scan: type[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is told once the disk has it; what is recorded meanwhile counts."""
    scan = make_scan()

    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fails)
        with pytest.raises(RecordError, match=r"volumes\.journal to the disk"):
            journal.end(scan.end(), 0.0)
    assert read_run_file(folder.path).state == "open"
    journal.end(scan.end(), 0.0)
    journal.close()
    ends = [wire.decode_to_runtime(entry.header) for entry in read_journal(journal.path / JOURNAL)][1:]
    assert ends == [scan.end()]
    folder.close()
    assert read_recorded(folder.path).info.state == "closed"


def test_a_file_that_can_neither_be_written_nor_removed_is_a_record_error(folder: RunFolder) -> None:
    (folder.path / "frames" / "000009.png").mkdir()  # refuses both, as everything does on a read-only disk
    with pytest.raises(RecordError, match=r"cannot write .*000009\.png"):
        folder.write_frame(9, "general", np.zeros((8, 8, 3), dtype=np.uint8))


def test_a_run_whose_table_belongs_to_another_is_not_gone_on_with(
    tiny_bundle: Path, make_scan: type[Scan], tmp_path: Path
) -> None:
    bundle, scan = Bundle.open(tiny_bundle), make_scan(n_volumes=30)
    one = Lockstep.begin(tmp_path, bundle, scan.start)
    with table_path(one.path, scan.start).open("ab") as rows:
        rows.write(tables.row_line(tables.Row(volume=30, state="missing", decoder="general")))
    one.let_go()
    with pytest.raises(RecordError, match="cannot go on with"):
        open_run(one.path, bundle, EngineUsed(), "blurred")


def test_a_run_that_is_recorded_again_gets_a_folder_of_its_own(make_scan: type[Scan], tmp_path: Path) -> None:
    scan = make_scan()
    for _ in range(3):
        RunJournal.create(tmp_path, run_file(scan)).close()
    assert [path.name for path in takes_of(tmp_path, scan.run_id)] == [
        scan.run_id,
        f"{scan.run_id}_take-2",
        f"{scan.run_id}_take-3",
    ]


def test_a_folder_that_a_crash_left_half_made_is_no_take(make_scan: type[Scan], tmp_path: Path) -> None:
    scan = make_scan()
    partial = tmp_path / f".partial-{scan.run_id}"
    (partial / "frames").mkdir(parents=True)
    (partial / "run.json").write_text("{")
    assert open_folders(tmp_path, "ab" * 32) == []
    RunJournal.create(tmp_path, run_file(scan)).close()
    assert [path.name for path in tmp_path.iterdir()] == [scan.run_id]
    assert open_folders(tmp_path, "ab" * 32) == [tmp_path / scan.run_id]


def test_a_run_file_of_a_newer_release_is_refused_and_damage_named(folder: RunFolder) -> None:
    file = folder.path / "run.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(RecordError, match="expected format 2 or earlier"):
        read_run_file(folder.path)
    file.write_text("{")
    with pytest.raises(RecordError, match="does not describe a run"):
        read_run_file(folder.path)
    with pytest.raises(RecordError, match="expected a run folder"):
        read_run_file(folder.path / "frames")


@pytest.mark.parametrize(
    ("run_id", "name"),
    [
        ("sub-01_ses-nsd01_task-nsdcore_run-01", "sub-01_ses-nsd01_task-nsdcore_run-01"),
        ("sub-07_task-rest", "sub-07_task-rest"),
        ("my-run_3", "sub-01_task-myrun3"),
        ("sub-01_run-2", "sub-01_task-sub01run2"),
    ],
)
def test_names_are_made_of_bids_entities(make_scan: type[Scan], run_id: str, name: str) -> None:
    assert bids_name(make_scan(run_id=run_id).start) == name


def test_a_folder_that_cannot_be_made_is_named(make_scan: type[Scan], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot make the run folder"):
        RunJournal.create(tmp_path / "file", run_file(make_scan()))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\tdecoded", "expected 17 columns"),
        ("\t".join(["one", "decoded"] + ["n/a"] * 14 + ["general"]), "does not fit"),
        ("\t".join(["1", "lost"] + ["n/a"] * 14 + ["general"]), "does not fit"),
        ("\t".join(["1", "decoded"] + ["n/a"] * 15), "does not fit"),
    ],
)
def test_a_row_that_does_not_fit_is_an_error(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "table.tsv"
    path.write_bytes(tables.header_line() + line.encode() + b"\n")
    with pytest.raises(RecordError, match=message):
        tables.read_table(path)
