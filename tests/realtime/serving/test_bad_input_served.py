"""What must not disturb a live run of a served runtime: other modalities, floods, and full folders."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
import pytest
from pydicom import Dataset
from pydicom.uid import UID, BasicTextSRStorage, CTImageStorage

from realtime.record.reader import read_recorded

from . import test_dicom
from .conftest import Scan, Served, wait_until
from .test_dicom import single
from .test_dicom_node import Node, aiter_of_nothing, associate, n_stored, object_of

RUN_ID = "sub-01_task-realtime"
N_VOLUMES = 12


class Flood:
    """Connections that do something wrong, on a thread for each kind, until they are ended."""

    N_HELD = 50
    """So many connections a thread holds at the same time."""

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self._port, self._tls = port, tls
        self._is_over = threading.Event()
        self.n_made = 0
        self._pool = ThreadPoolExecutor(len(KINDS))

    def __enter__(self) -> Flood:
        self._running = [self._pool.submit(self._run, what) for what in KINDS]
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for each in self._running:
            each.result()
        self._pool.shutdown()

    def _run(self, what: Callable[[socket.socket], None]) -> None:
        held: deque[socket.socket] = deque()
        while not self._is_over.is_set():
            with contextlib.suppress(OSError, AssertionError):  # it gave way to another
                held.append(socket.create_connection(("127.0.0.1", self._port), timeout=2))
                self.n_made += 1
                if self._tls and what is not nothing:
                    held[-1] = self._tls.wrap_socket(held[-1], server_hostname="127.0.0.1")
                what(held[-1])
            while len(held) > self.N_HELD:
                held.popleft().close()
        for each in held:
            each.close()


def nothing(connection: socket.socket) -> None:
    """Send nothing at all, and over TLS no handshake."""


def a_byte(connection: socket.socket) -> None:
    """Begin an association, and never go on with it."""
    connection.sendall(b"\1")


def rubbish(connection: socket.socket) -> None:
    """Send what is no DICOM."""
    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")


def leave(connection: socket.socket) -> None:
    """Ask for an association, and be gone."""
    associate(connection)
    connection.close()


KINDS = (nothing, a_byte, rubbish, associate, leave)


@pytest.fixture
def on_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """DICOM objects of the tests lie on the tiny bundle's grid."""
    monkeypatch.setitem(test_dicom.GRID, "sizes_mm", (1.8, 1.8, 1.8))
    monkeypatch.setitem(test_dicom.GRID, "origin_mm", (-5.4, -5.4, -5.4))


def assert_is(folder: Path, scan: Scan) -> None:
    """A run has the volumes of a scan, in their order."""
    recorded = dict(read_recorded(folder).volumes())
    assert sorted(recorded) == list(range(scan.n_volumes))
    for index, voxels in recorded.items():
        assert np.array_equal(voxels, scan.voxels(index))


@pytest.mark.slow
@pytest.mark.parametrize("is_over_tls", [False, True])
def test_a_flood_of_associations_loses_no_volume_of_a_run(
    serve: Callable[..., Served],
    make_certificate: Callable[..., tuple[Path, Path]],
    closed_account: Callable[[Path], dict[str, Any]],
    on_grid: None,
    tmp_path: Path,
    is_over_tls: bool,
) -> None:
    """A sender that gets no answer sends again, as scanners do."""
    scan = Scan(n_volumes=5, dtype="uint16")
    options, client = ["--volumes", "5"], None
    client_options: tuple[str, ...] = ()
    if is_over_tls:
        certificate, key = make_certificate(tmp_path, "127.0.0.1")
        options += ["--source-tls-cert", str(certificate), "--source-tls-key", str(key)]
        client_options = ("--anonymous-tls", "--add-cert-file", str(certificate))
        client = ssl.create_default_context(cafile=str(certificate))
    served = serve(*options, source="dicom://127.0.0.1:0?aet=NODE")
    node = Node(served.address, aiter_of_nothing(), tmp_path)
    recorder = psutil.Process(served.child("record").pid)

    async def send() -> None:
        for index in range(5):
            volume = object_of(1 + index, 7, scan.voxels(index))
            while not n_stored(await node.store(volume, options=client_options)):
                pass

    with Flood(node.port, client) as flood:
        wait_until(lambda: flood.n_made > 100, "a flood")
        asyncio.run(send())
        wait_until(lambda: flood.n_made > 400, "a flood")
        assert recorder.memory_info().rss < 500 * 2**20
    (folder,) = served.out.glob(f"{RUN_ID}_series-7x*")
    assert closed_account(folder)["received"] == 5
    assert_is(folder, scan)
    assert served.interrupt() == 0
    log = served.log()
    assert log.count("more than 32 connections at the same time") in (1, 2)  # once a minute
    assert "Traceback" not in log


def of_class(made: Dataset, uid: str) -> Dataset:
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = UID(uid)
    return made


def report() -> Dataset:
    """A structured report, which has no pixels."""
    made = of_class(object_of(90, 90), BasicTextSRStorage)
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated"):
        del made[keyword]
    return made


def anatomy(series: int) -> list[Dataset]:
    """An anatomical image of MR, slice by slice."""
    made = [single(np.full((9, 9, 8), 100, "<u2"), nth, nth + 1, None, series) for nth in range(8)]
    for each in made:
        each.SOPInstanceUID = each.file_meta.MediaStorageSOPInstanceUID
        each.SeriesDescription, each.RepetitionTime = "T1w_MPRAGE", 2_300
    return list(made)


def test_other_modalities_before_and_within_a_run_do_not_disturb_it(
    serve: Callable[..., Served],
    closed_account: Callable[[Path], dict[str, Any]],
    on_grid: None,
    tmp_path: Path,
) -> None:
    scan = Scan(n_volumes=N_VOLUMES, dtype="uint16")
    served = serve("--volumes", str(N_VOLUMES), source="dicom://127.0.0.1:0?aet=NODE")
    node = Node(served.address, aiter_of_nothing(), tmp_path)
    ct = of_class(object_of(80, 80), CTImageStorage)
    bold = [object_of(1 + index, 7, scan.voxels(index)) for index in range(N_VOLUMES)]

    async def send() -> None:
        goes_on = ("--no-halt",)
        assert n_stored(await node.store(ct, ct, report(), *anatomy(5), options=goes_on)) == 8
        assert n_stored(await node.store(*bold[:6])) == 6
        assert n_stored(await node.store(report(), ct, *anatomy(6), *bold[6:8], options=goes_on)) == 10
        assert n_stored(await node.store(*bold[8:])) == 4

    asyncio.run(send())
    found = f"{RUN_ID}_series-7x*"
    wait_until(lambda: list(served.out.glob(found)), "a run, after the anatomical image was refused")
    (folder,) = served.out.glob(found)
    assert closed_account(folder)["received"] == N_VOLUMES
    assert_is(folder, scan)
    assert len(list(served.out.glob("*/run.json"))) == 1
    assert served.interrupt() == 0
    log = served.log()
    for said in ("class CT Image Storage", "class Basic Text SR Storage"):
        assert log.count(f"refused objects of {said}") == 2  # once in each association
    assert "its run was refused: expected" in log  # the anatomy before the run
    assert "waits" in log  # the anatomy within it
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_folder_of_100_000_old_files_hides_no_new_volume(
    serve: Callable[..., Served],
    closed_account: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    scan, export = Scan(n_volumes=N_VOLUMES), tmp_path / "export"
    old = nibabel.Nifti1Image(scan.voxels(0), np.array(scan.start.affine)).to_bytes()
    (export / "today").mkdir(parents=True)
    for number in range(100_000):
        with open(export / "today" / f"old_{number:06d}.nii", "wb", buffering=0) as file:
            file.write(old[:400])
    served = serve("--volumes", str(N_VOLUMES), source=f"folder:{export}")
    for index in range(N_VOLUMES):
        volume = nibabel.Nifti1Image(scan.voxels(index), np.array(scan.start.affine))
        (export / "today" / f"run-1_{index + 1:04d}.nii").write_bytes(volume.to_bytes())
    folder = served.out / f"{RUN_ID}_series-todayrun1"
    assert closed_account(folder)["received"] == N_VOLUMES
    assert_is(folder, scan)
    assert len(list(served.out.glob("*/run.json"))) == 1
    assert "it contains 100000 files" in served.log()
    assert "Traceback" not in served.log()
