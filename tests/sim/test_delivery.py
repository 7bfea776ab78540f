"""A run leaves the scanner by protocols that are not this project's own, at the scan's pace and unchanged."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.association import Association

from nsd import Layout
from realtime import wire
from realtime.sources.afni import AfniScanner
from realtime.sources.pyneal import PynealScanner
from realtime.sources.run_boundaries import RunOver
from realtime.sources.run_boundaries import Scan as Received
from sim import send_dicom
from sim.__main__ import main
from sim.delivery import Delivery, open_export
from sim.errors import SimError
from sim.faults import FaultyScan, draw_plan, late_tr, parse_rates
from sim.recording import Recording
from sim.sender import RefusedError

from .conftest import Tiny
from .runtime import ContractRuntime
from .small_scan import (
    N_VOLUMES,
    OBLIQUE,
    ROWS,
    SHAPE,
    SmallScan,
    VirtualTime,
    deliver,
    dicom_node,
    silent,
)
from .test_scanner import RouterRuntime


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


@pytest.mark.parametrize("name", ["enhanced", "mosaic", "classic"])
def test_a_dicom_node_stores_the_images_that_a_folder_would_get(tmp_path: Path, name: str) -> None:
    deliver(f"folder:{tmp_path}?format={name}")
    with dicom_node() as (port, stored):
        deliver(f"dicom://127.0.0.1:{port}?aet=NODE&format={name}")
    files = [pydicom.dcmread(path) for path in sorted(tmp_path.iterdir())]
    assert [image.SOPInstanceUID for image in stored] == [image.SOPInstanceUID for image in files]
    assert [image.PixelData for image in stored] == [image.PixelData for image in files]


def test_every_answer_of_a_dicom_node_is_heard_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pynetdicom fails to pause the association's thread, that thread must not take the answer."""
    always = property(lambda self: True, lambda self, value: None)
    monkeypatch.setattr(Association, "_is_paused", always, raising=False)
    monkeypatch.setattr(send_dicom, "_ANSWER_S", 2.0)
    scan = SmallScan()
    with dicom_node() as (port, stored):
        export = open_export(f"dicom://127.0.0.1:{port}?aet=NODE&format=classic", scan.start, silent)
        assert isinstance(export, send_dicom.NodeExport)
        assert export.begin(lambda: False)
        association: Any = export._node._association
        monkeypatch.setattr(association._reactor_checkpoint, "clear", lambda: None)
        for index in range(N_VOLUMES):
            export.send(index, scan.voxels[index])
        export.end()
    assert len(stored) == N_VOLUMES * SHAPE[2]


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
