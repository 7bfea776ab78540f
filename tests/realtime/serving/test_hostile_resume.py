"""An open run that a stranger put among the operator's: going on with it touches nothing outside of it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from realtime.errors import RecordError
from realtime.events import DecoderUsed
from realtime.record.folder import RunFolder
from realtime.record.run_journal import RunJournal
from realtime.record.run_json import events_path, new_run_file, table_path

from .conftest import Scan
from .in_process import opened

DECODERS = (DecoderUsed(name="general", window_delay_volumes=2),)
BYTES = b"the operator's own"


@pytest.fixture
def planted(make_scan: type[Scan], make_picture: Callable[..., bytes], tmp_path: Path) -> RunFolder:
    scan = make_scan(n_volumes=10)
    info = new_run_file(scan.start, bundle_name="tiny", bundle_sha256="ab" * 32, decoders=DECODERS, seed=0)
    folder = opened(tmp_path / "runs", info)
    folder.write_shown(scan.marker(1), make_picture(1))
    folder.let_go()
    return folder


def record(path: Path, scan: Scan) -> None:
    """As the recorder goes on with a run that was left open."""
    journal = RunJournal.reopen(path)
    try:
        journal.add_volume(scan.volume(3), memoryview(scan.voxels(3).tobytes()), 0.0)
    finally:
        journal.close()


def decode(path: Path, scan: Scan) -> None:
    """As the decoder does."""
    folder = RunFolder.open(path, DECODERS)
    try:
        folder.write_shown(scan.marker(2), (path / "shown" / "000001.png").read_bytes())
        folder.write_frame(3, "general", np.zeros((8, 8, 3), dtype=np.uint8))
        folder.note("goes on")
    finally:
        folder.let_go()


@pytest.mark.parametrize("how", ["link", "hard link", "fifo", "device"])
@pytest.mark.parametrize("name", ["volumes.journal", "run.json", "table", "events", ".partial-run.json"])
def test_files_elsewhere_are_not_cut_or_written(
    planted: RunFolder, make_scan: type[Scan], tmp_path: Path, how: str, name: str
) -> None:
    tables = {"table": table_path, "events": events_path}
    path = tables[name](planted.path, planted.info.start) if name in tables else planted.path / name
    outside = tmp_path / "outside"
    content = path.read_bytes() if path.exists() else BYTES
    outside.write_bytes(content + BYTES)  # so that a cut of a torn end is seen too
    before = outside.read_bytes()
    path.unlink(missing_ok=True)
    if how == "link":
        path.symlink_to(outside)
    elif how == "hard link":
        path.hardlink_to(outside)
    elif how == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with contextlib.suppress(RecordError):
        record(planted.path, make_scan(n_volumes=10))
    with contextlib.suppress(RecordError):
        decode(planted.path, make_scan(n_volumes=10))
    assert outside.read_bytes() == before


@pytest.mark.parametrize("name", ["frames", "shown"])
def test_files_in_a_linked_folder_stay(
    planted: RunFolder, make_scan: type[Scan], tmp_path: Path, name: str
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "000001.png").write_bytes(BYTES)
    (planted.path / name).rename(tmp_path / "away")
    (planted.path / name).symlink_to(tmp_path / "photos")
    with pytest.raises(RecordError, match=name):
        decode(planted.path, make_scan(n_volumes=10))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["000001.png"]
    assert (tmp_path / "photos" / "000001.png").read_bytes() == BYTES


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_run_of_another_user_is_not_gone_on_with(planted: RunFolder, make_scan: type[Scan]) -> None:
    before = {path: path.stat().st_mtime_ns for path in planted.path.rglob("*")}
    os.chown(planted.path, 12345, -1)
    with pytest.raises(RecordError, match="belongs to another user"):
        record(planted.path, make_scan(n_volumes=10))
    with pytest.raises(RecordError, match="belongs to another user"):
        decode(planted.path, make_scan(n_volumes=10))
    assert {path: path.stat().st_mtime_ns for path in planted.path.rglob("*")} == before


def test_a_whole_run_is_private_whatever_the_umask(
    make_scan: type[Scan], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    scan, before = make_scan(n_volumes=10), os.umask(0)
    try:
        info = new_run_file(
            scan.start, bundle_name="tiny", bundle_sha256="ab" * 32, decoders=DECODERS, seed=0
        )
        folder = opened(tmp_path / "runs", info)
        folder.write_file("prior.npz", b"prior")
        folder.write_shown(scan.marker(1), make_picture(1))
        folder.write_frame(3, "general", np.zeros((8, 8, 3), dtype=np.uint8))
        folder.close("ended")
    finally:
        os.umask(before)
    for path in (folder.path, *folder.path.rglob("*")):
        assert stat.S_IMODE(path.lstat().st_mode) == (0o700 if path.is_dir() else 0o600), path
