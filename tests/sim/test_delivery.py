"""A run leaves the scanner by protocols that are not this project's own, at the scan's pace and unchanged."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom import AE, AllStoragePresentationContexts, evt

from nsd import Layout
from realtime import wire
from realtime.sources.afni import AfniScanner
from realtime.sources.pyneal import PynealScanner
from realtime.sources.run_boundaries import RunOver
from realtime.sources.run_boundaries import Scan as Received
from sim.__main__ import main
from sim.delivery import Delivery, open_export
from sim.errors import SimError
from sim.faults import FaultyScan, draw_plan, late_tr, parse_rates
from sim.head_motion import rigid
from sim.recording import Recording
from sim.send_files import DICOM_FORMATS
from sim.sender import RefusedError

from .conftest import Tiny
from .runtime import ContractRuntime
from .test_scanner import RouterRuntime

N_VOLUMES = 6
SHAPE = (6, 7, 5)
OBLIQUE = rigid((4.0, -8.0, 20.0, 0.2, -0.1, 0.3)) @ np.diag([1.5, 2.0, 3.0, 1.0])
ROWS: wire.Affine = msgspec.convert(OBLIQUE.tolist(), wire.Affine)
DICOM = list(DICOM_FORMATS)


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
    with (
        socket.create_server(("127.0.0.1", 0)) as control,
        socket.create_server(("127.0.0.1", free_port)) as data,
    ):

        def receive() -> None:
            with control.accept()[0] as connection:
                assert connection.recv(100) == f"tcp:localhost:{free_port}\0".encode()
            data.accept()[0].close()

        with ThreadPoolExecutor() as pool:
            receiving = pool.submit(receive)
            with pytest.raises(SimError, match="the runtime closed the connection before volume"):
                deliver(f"afni+tcp://127.0.0.1:{control.getsockname()[1]}?data={free_port}", speed=20.0)
            receiving.result()


@contextmanager
def dicom_node(status: int = 0x0000, title: str = "NODE") -> Iterator[tuple[int, list[pydicom.Dataset]]]:
    """A node that any DICOM sender could use: its port, and what was stored."""
    stored: list[pydicom.Dataset] = []

    def on_store(event: Any) -> pydicom.Dataset:
        stored.append(event.dataset)
        answer = pydicom.Dataset()
        answer.Status = status
        if status:
            answer.ErrorComment = "expected MR images"
        return answer

    entity = AE(title)
    entity.require_called_aet = True
    entity.supported_contexts = AllStoragePresentationContexts
    server: Any = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    try:
        yield server.server_address[1], stored
    finally:
        server.shutdown()


@pytest.mark.parametrize("name", ["enhanced", "mosaic", "classic"])
def test_a_dicom_node_stores_the_images_that_a_folder_would_get(tmp_path: Path, name: str) -> None:
    deliver(f"folder:{tmp_path}?format={name}")
    with dicom_node() as (port, stored):
        deliver(f"dicom://127.0.0.1:{port}?aet=NODE&format={name}")
    files = [pydicom.dcmread(path) for path in sorted(tmp_path.iterdir())]
    assert [image.SOPInstanceUID for image in stored] == [image.SOPInstanceUID for image in files]
    assert [image.PixelData for image in stored] == [image.PixelData for image in files]


def test_a_dicom_node_that_refuses_is_told() -> None:
    with dicom_node(0x0122) as (port, _), pytest.raises(RefusedError, match=r"0x0122\): expected MR images"):
        deliver(f"dicom://127.0.0.1:{port}?aet=NODE")
    with dicom_node() as (port, _), pytest.raises(SimError, match="rejects calls to 'OTHER'; `.aet=NAME`"):
        deliver(f"dicom://127.0.0.1:{port}?aet=OTHER")


def test_pictures_go_to_a_port_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    """Markers follow their volumes; here the volumes are written as files meanwhile."""
    router = RouterRuntime(runtime := ContractRuntime())
    start = wire.RunStart(
        run_id="x", subject=1, tr_s=1, n_volumes=1, shape=(1, 1, 1), affine=ROWS, dtype="int16"
    )
    runtime.handle(start, b"")
    command = ["replay", "--nsd", str(tiny.root), "--connect", f"folder:{tmp_path}", "--speed", "1000"]
    with router.serving():
        assert main([*command, "--markers", f"tcp://127.0.0.1:{router.port}"]) == 0
    with Recording(Layout(tiny.root), subject=1, session=1, run=1) as recording:
        assert {at: name for at, (name, _) in runtime.markers.items()} == {
            marker.onset_volume: marker.name for marker in recording.markers
        }
        assert runtime.markers[9][1] == recording.picture_png(9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--connect", "tcp://127.0.0.1:1", "--markers", "tcp://127.0.0.1:2"],
            "expected no --markers with tcp",
        ),
        (["--connect", "folder:{}", "--fault", "corrupt=1"], "fault corrupt: expected tcp:// or ipc://"),
        (["--connect", "folder:{}", "--markers", "foo"], "--markers foo: expected tcp://127.0.0.1:5557"),
    ],
)
def test_what_only_own_messages_can_do_is_named(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    filled = [option.format(tmp_path) for option in options]
    assert main(["replay", "--nsd", str(tiny.root), *filled]) == 2
    assert message in capsys.readouterr().err


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
        ("folder:/x?format=gif", "format=gif: expected one of nifti, pair, nifti-4d, mosaic"),
        ("folder:/x?fromat=nifti", "expected no option fromat"),
        ("afni+tcp://127.0.0.1", "expected ports like afni"),
        ("afni+tcp://127.0.0.1:1?data=x", "got data port 'x'"),
        ("dicom://127.0.0.1:1?format=nifti", "format=nifti: expected one of mosaic, enhanced"),
        ("folder:/x?format=mosaic&dialect=uid", "dialect=uid: expected one of echoes, phase, uids"),
        ("folder:/x?format=nifti&dialect=uids", "dialect=uids: expected a DICOM format with it"),
        ("dicom://127.0.0.1:1?aet=12345678901234567", "with a title of at most 16 characters"),
        ("dicom://127.0.0.1", "expected an address like dicom://"),
        ("pyneal+tcp://:x", "expected an address like tcp://"),
    ],
)
def test_other_addresses_are_named(address: str, message: str) -> None:
    with pytest.raises(SimError, match=message):
        open_export(address, SmallScan().start, silent)
