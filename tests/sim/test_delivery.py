"""A run leaves the scanner by protocols that are not this project's own, at the scan's pace and unchanged."""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import wire
from realtime.sources.afni import AfniScanner
from realtime.sources.pyneal import PynealScanner
from realtime.sources.run_boundaries import RunOver
from realtime.sources.run_boundaries import Scan as Received
from sim.delivery import Delivery, open_export
from sim.errors import SimError
from sim.faults import FaultyScan, draw_plan, late_tr, parse_rates
from sim.head_motion import rigid
from sim.send_files import FORMATS
from sim.sender import RefusedError

N_VOLUMES = 6
SHAPE = (6, 7, 5)
OBLIQUE = rigid((4.0, -8.0, 20.0, 0.2, -0.1, 0.3)) @ np.diag([1.5, 2.0, 3.0, 1.0])
DICOM = [name for name in FORMATS if name not in ("nifti", "pair")]


class SmallScan:
    """A run of a few small volumes on an oblique grid."""

    def __init__(
        self, dtype: str = "int16", affine: np.ndarray = OBLIQUE, run_id: str = "task-x_run-03"
    ) -> None:
        rng = np.random.default_rng(1)
        self.voxels = rng.integers(0, 4_000, (N_VOLUMES, *SHAPE)).astype(dtype)
        self.start = wire.RunStart(
            run_id=run_id,
            subject=1,
            tr_s=1.5,
            n_volumes=N_VOLUMES,
            shape=SHAPE,
            affine=msgspec.convert(affine.tolist(), wire.Affine),
            dtype=dtype,  # type: ignore[arg-type]
        )

    def volume(self, index: int) -> bytes:
        return bytes(self.voxels[index].tobytes())

    def picture_png(self, onset_volume: int) -> bytes:
        raise AssertionError


class VirtualTime:
    def __init__(self) -> None:
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Noted:
    """An export that notes what it is given, and when."""

    def __init__(self, time: VirtualTime, send_s: float = 0.0) -> None:
        self.sent: list[tuple[float, int]] = []
        self.has_ended = False
        self._time, self._send_s = time, send_s

    def begin(self, is_interrupted: Callable[[], bool]) -> bool:
        return True

    def send(self, index: int, voxels: np.ndarray) -> None:
        self.sent.append((self._time.now_s, index))
        self._time.now_s += self._send_s

    def end(self) -> None:
        self.has_ended = True


def silent(line: str) -> None:
    """Nobody reads what the scanner says."""


def deliver(address: str, scan: SmallScan | None = None, speed: float = 1e6) -> Delivery:
    scan = scan or SmallScan()
    delivery = Delivery(scan, open_export(address, scan.start, silent), speed=speed)
    assert delivery.run()
    return delivery


@given(send_s=st.floats(0, 1.4), speed=st.sampled_from([1.0, 3.0]))
@settings(max_examples=20, deadline=None)
def test_volumes_leave_when_they_are_acquired_however_long_sending_takes(send_s: float, speed: float) -> None:
    time, scan = VirtualTime(), SmallScan()
    export = Noted(time, send_s / speed)
    assert Delivery(scan, export, speed=speed, clock=time.clock, sleep=time.sleep).run()
    assert [index for _, index in export.sent] == list(range(N_VOLUMES))
    late_s = [at - (index + 1) * 1.5 / speed for at, index in export.sent]
    assert min(late_s) > -1e-9
    assert max(late_s) <= send_s / speed + 1e-9
    assert export.has_ended


def test_faults_of_the_scanner_are_those_of_the_plan_by_any_protocol() -> None:
    time, scan = VirtualTime(), SmallScan()
    plan = draw_plan(parse_rates(["drop=0.3", "delay=0.3"]), 5, scan.start)
    assert {fault.kind for fault in plan.values()} == {"drop", "delay"}
    late = late_tr(plan, N_VOLUMES)
    export = Noted(time)
    faulty = FaultyScan(scan, plan)
    delivery = Delivery(faulty, export, speed=1.0, late_tr=late, clock=time.clock, sleep=time.sleep)
    assert delivery.run()
    came = {index: at for at, index in export.sent}
    for index in range(N_VOLUMES):
        if index in plan and plan[index].kind == "drop":
            assert index not in came
        else:
            assert came[index] == pytest.approx((index + 1 + late.get(index, 0)) * 1.5)


def test_an_interrupted_run_is_ended() -> None:
    time, scan = VirtualTime(), SmallScan()

    class Interrupting(Noted):
        def send(self, index: int, voxels: np.ndarray) -> None:
            super().send(index, voxels)
            if index == 2:
                delivery.interrupt()

    export = Interrupting(time)
    delivery = Delivery(scan, export, speed=1.0, clock=time.clock, sleep=time.sleep)
    assert not delivery.run()
    assert (delivery.n_sent, export.has_ended) == (3, True)


async def received(scanner: Any, address_of: Callable[[str], str], scan: SmallScan) -> list[Received]:
    """What the runtime's source receives of a run."""
    address = address_of(await scanner.start())
    sending = asyncio.create_task(asyncio.to_thread(deliver, address, scan))
    scans: list[Received] = []
    async with asyncio.timeout(30):
        async for one in scanner.scans():
            if isinstance(one, RunOver):
                break
            scans.append(one)
            await one.answer(wire.Ack(run_id=scan.start.run_id, index=one.index))
            if len(scans) == N_VOLUMES and isinstance(scanner, PynealScanner):
                break
    await sending
    await scanner.stop()
    return scans


def assert_received(scans: list[Received], scan: SmallScan) -> None:
    assert [one.index for one in scans] == list(range(N_VOLUMES))
    for one, voxels in zip(scans, scan.voxels, strict=True):
        came = np.frombuffer(one.payload, np.dtype(one.dtype)).reshape(one.shape)
        assert np.array_equal(came, voxels)
        assert np.allclose(one.affine, OBLIQUE, atol=1e-4)
        assert one.tr_s == pytest.approx(1.5)


@pytest.mark.parametrize("dtype", ["int16", "float32", "int32"])
def test_pyneals_receiver_gets_the_volumes(dtype: str) -> None:
    async def run() -> None:
        scan = SmallScan(dtype)
        scans = await received(PynealScanner("tcp://127.0.0.1:0"), lambda address: address, scan)
        assert_received(scans, scan)

    asyncio.run(run())


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_afnis_receiver_gets_the_volumes(dtype: str, free_port: int) -> None:
    async def run() -> None:
        scan = SmallScan(dtype)
        scanner = AfniScanner("tcp://127.0.0.1:0")
        scans = await received(scanner, lambda address: f"{address}?data={free_port}", scan)
        assert_received(scans, scan)

    asyncio.run(run())


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_pyneals_stop_ends_the_run_with_the_runtimes_reason() -> None:
    async def run() -> None:
        scanner = PynealScanner("tcp://127.0.0.1:0")
        sending = asyncio.create_task(asyncio.to_thread(deliver, await scanner.start()))
        async for one in scanner.scans():
            await one.answer(wire.Refused(run_id="", code="grid", message="expected another grid"))
            break
        with pytest.raises(RefusedError, match="the runtime refused: expected another grid"):
            await sending
        await scanner.stop()

    asyncio.run(run())


def test_a_closed_afni_connection_is_told(free_port: int) -> None:
    async def run() -> None:
        scanner = AfniScanner("tcp://127.0.0.1:0")
        address = f"{await scanner.start()}?data={free_port}"
        sending = asyncio.create_task(asyncio.to_thread(deliver, address, speed=20.0))
        async for one in scanner.scans():
            if isinstance(one, RunOver):
                break
            await one.answer(wire.Refused(run_id="", code="grid", message="expected another grid"))
        with pytest.raises(SimError, match="the runtime closed the connection before volume"):
            await sending
        await scanner.stop()

    asyncio.run(run())


@pytest.mark.parametrize(("name", "ending"), [("nifti", "nii"), ("pair", "img")])
def test_nifti_files_hold_the_volumes(tmp_path: Path, name: str, ending: str) -> None:
    scan = SmallScan()
    deliver(f"folder:{tmp_path}?format={name}", scan)
    for index, voxels in enumerate(scan.voxels):
        image: Any = nib.load(tmp_path / f"task-x_run-03_{index + 1:04d}.{ending}")
        assert np.array_equal(np.asanyarray(image.dataobj), voxels)
        assert np.allclose(image.affine, OBLIQUE, atol=1e-5)


def test_a_whole_run_is_one_4d_file(tmp_path: Path) -> None:
    scan = SmallScan()
    deliver(f"folder:{tmp_path}?format=nifti-4d", scan)
    image: Any = nib.load(tmp_path / "task-x_run-03_bold.nii.gz")
    assert np.array_equal(np.asanyarray(image.dataobj), np.moveaxis(scan.voxels, 0, -1))
    assert image.header.get_zooms()[3] == pytest.approx(1.5)


@pytest.mark.parametrize("name", DICOM)
@pytest.mark.parametrize("signed", [False, True])
def test_dcm2niix_finds_the_volumes_in_dicom_files(tmp_path: Path, name: str, signed: bool) -> None:
    program = pytest.importorskip("dcm2niix").bin
    scan = SmallScan()
    scan.voxels -= np.int16(2_000 * signed)
    deliver(f"folder:{tmp_path / 'dicom'}?format={name}", scan)
    out = tmp_path / "nifti"
    out.mkdir()
    subprocess.run(
        [program, "-f", "%s_%r", "-z", "n", "-o", out, tmp_path / "dicom"], check=True, capture_output=True
    )
    files = sorted(out.glob("*.nii"), key=lambda path: [int(number) for number in path.stem.split("_")])
    images: list[Any] = [nib.as_closest_canonical(nib.load(path)) for path in files]
    voxels = np.concatenate([np.asanyarray(image.dataobj).reshape(*SHAPE, -1) for image in images], axis=-1)
    assert np.array_equal(np.moveaxis(voxels, -1, 0), scan.voxels)
    assert all(np.allclose(image.affine, OBLIQUE, atol=1e-4) for image in images)
    assert images[0].header.get_zooms()[3:] in [(pytest.approx(1.5),), ()]
    assert len(images) == (1 if name in ("mosaic", "classic") else N_VOLUMES)


@pytest.mark.parametrize("name", DICOM)
def test_dicom_files_are_numbered_as_scanners_do(tmp_path: Path, name: str) -> None:
    deliver(f"folder:{tmp_path}?format={name}")
    headers = [pydicom.dcmread(path) for path in sorted(tmp_path.iterdir())]
    n_files = N_VOLUMES * (SHAPE[2] if name in ("classic", "split") else 1)
    assert len({header.SOPInstanceUID for header in headers}) == n_files
    assert len({header.StudyInstanceUID for header in headers}) == 1
    assert Counter(header.AcquisitionNumber for header in headers) == dict.fromkeys(
        range(1, N_VOLUMES + 1), n_files // N_VOLUMES
    )
    if name == "split":
        assert sorted({header.SeriesNumber for header in headers}) == list(range(3_001, 3_001 + N_VOLUMES))
    else:
        assert [header.InstanceNumber for header in headers] == list(range(1, n_files + 1))
        assert {header.SeriesNumber for header in headers} == {3}


def test_runs_of_a_session_are_series_of_one_study(tmp_path: Path) -> None:
    for run_id in ("ses-1_run-01", "ses-1_run-02"):
        deliver(f"folder:{tmp_path}?format=mosaic", SmallScan(run_id=run_id))
    headers = [pydicom.dcmread(path) for path in tmp_path.iterdir()]
    assert len({header.StudyInstanceUID for header in headers}) == 1
    assert len({header.SeriesInstanceUID for header in headers}) == 2


def test_files_that_are_there_are_not_overwritten(tmp_path: Path) -> None:
    address = f"folder:{tmp_path}?format=nifti"
    deliver(address)
    with pytest.raises(SimError, match=r"0001\.nii: expected no file of this run"):
        deliver(address)


@pytest.mark.parametrize("dtype", ["int32", "float64"])
def test_dicom_holds_whole_numbers_of_16_bits_whatever_their_type(tmp_path: Path, dtype: str) -> None:
    scan = SmallScan(dtype)
    deliver(f"folder:{tmp_path}?format=enhanced", scan)
    (first, *_) = sorted(tmp_path.iterdir())
    assert np.array_equal(pydicom.dcmread(first).pixel_array[0], scan.voxels[0][::-1, ::-1, 0].T)


@pytest.mark.parametrize("voxel", [40_000 + 1j, 0.5])
def test_dicom_refuses_voxels_that_it_cannot_hold(tmp_path: Path, voxel: complex) -> None:
    scan = SmallScan("float32")
    scan.voxels[0, 0, 0, 0] = voxel.real
    scan.voxels[0, 1, 0, 0] = -voxel.imag
    with pytest.raises(SimError, match="expected integers of 16 bits, got float32"):
        deliver(f"folder:{tmp_path}?format=classic", scan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "right angles"),
        (np.diag([1, 1, -1, 1]), "right-handed"),
    ],
)
def test_dicom_refuses_grids_that_it_cannot_describe(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(SimError, match=message):
        deliver(f"folder:{tmp_path}?format=classic", SmallScan(affine=OBLIQUE @ np.array(change)))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1", "expected an address like tcp://"),
        ("folder:", "expected an address like tcp://"),
        ("folder:/x?format=gif", "format=gif: expected one of nifti, pair, mosaic"),
        ("folder:/x?fromat=nifti", "expected no option fromat"),
        ("afni+tcp://127.0.0.1", "expected ports like afni"),
        ("afni+tcp://127.0.0.1:1?data=x", "got data port 'x'"),
        ("pyneal+tcp://:x", "expected an address like tcp://"),
    ],
)
def test_other_addresses_are_named(address: str, message: str) -> None:
    with pytest.raises(SimError, match=message):
        open_export(address, SmallScan().start, silent)
