"""Runs that somebody else recorded, or made up, are read without following what they hold elsewhere."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from realtime.errors import RecordError
from realtime.events import DecoderUsed
from realtime.record import tables
from realtime.record.folder import RunFolder
from realtime.record.reader import read_image, read_recorded
from realtime.record.run_json import (
    MAX_RUN_FILE_BYTES,
    events_path,
    new_run_file,
    read_run_file,
    table_path,
    takes_of,
)
from realtime.record.storage import exists

from .conftest import Scan
from .in_process import opened


@pytest.fixture
def run(make_scan: type[Scan], make_picture: Callable[..., bytes], tmp_path: Path) -> RunFolder:
    scan = make_scan(n_volumes=10)
    info = new_run_file(
        scan.start,
        bundle_name="tiny",
        bundle_sha256="ab" * 32,
        decoders=(DecoderUsed(name="general", window_delay_volumes=2),),
        seed=0,
    )
    folder = opened(tmp_path / "runs", info)
    folder.write_shown(scan.marker(1), make_picture(1))
    file = folder.write_frame(3, "general", np.zeros((8, 8, 3), dtype=np.uint8))
    row = tables.Row(volume=3, state="decoded", frame=file, window_start=0, window_stop=4, decoder="general")
    folder.write_row(row)
    folder.close()
    return folder


def link(path: Path, moved: Path) -> None:
    path.symlink_to(moved)


def link_to_a_device(path: Path, moved: Path) -> None:
    path.symlink_to("/dev/zero")


def fifo(path: Path, moved: Path) -> None:
    os.mkfifo(path)


def read_all(folder: Path) -> None:
    (trial,) = read_recorded(folder).trials()
    trial.shown_image()
    trial.decoded_image()


@pytest.mark.parametrize("plant", [link, link_to_a_device, fifo])
@pytest.mark.parametrize(
    "name", ["run.json", "table", "events", "frames", "frames/000003.png", "shown", "shown/000001.png", "."]
)
def test_what_is_no_file_of_the_run_is_not_read(
    run: RunFolder, tmp_path: Path, plant: Callable[[Path, Path], None], name: str
) -> None:
    read_all(run.path)
    named = {"table": table_path(run.path, run.info.start), "events": events_path(run.path, run.info.start)}
    path = named.get(name, run.path / name)
    path.rename(tmp_path / "moved")
    plant(path, tmp_path / "moved")
    with pytest.raises(RecordError, match=path.name):
        read_all(run.path)


def test_a_file_that_is_too_large_is_not_read_into_memory(run: RunFolder) -> None:
    for path, limit in (
        (table_path(run.path, run.info.start), tables.MAX_TABLE_BYTES),
        (events_path(run.path, run.info.start), tables.MAX_TABLE_BYTES),
        (run.path / "run.json", MAX_RUN_FILE_BYTES),
    ):
        whole = path.read_bytes()
        os.truncate(path, 2**40)  # a hole: it takes no room on the disk
        with pytest.raises(RecordError, match=f"at most {limit} bytes"):
            read_recorded(run.path)
        path.write_bytes(whole)
    os.truncate(run.path / "frames" / "000003.png", 2**40)
    with pytest.raises(RecordError, match="expected at most"):
        read_image(run.path / "frames" / "000003.png")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_of_runs_that_cannot_be_read_is_told(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    for name in ("open", "lstat", "stat"):
        monkeypatch.setattr(os, name, fails)
    for read in (
        lambda: list(takes_of(run.path.parent, run.path.name)),
        lambda: read_run_file(run.path),
        lambda: read_recorded(run.path),
        lambda: tables.read_table(run.path / "table.tsv"),
    ):
        with pytest.raises(RecordError, match=f"{run.path.name}.*{os.strerror(number)}"):
            read()


def test_a_link_that_leads_nowhere_takes_the_place_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "nowhere")
    assert exists(tmp_path / "run")
    assert list(takes_of(tmp_path, "run")) == [tmp_path / "run"]
    assert not exists(tmp_path / "run_take-2")
