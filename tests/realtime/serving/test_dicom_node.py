"""The DICOM node, with DCMTK's storescu as the scanner, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, FileDataset
from pydicom.uid import UID, CTImageStorage

from realtime import wire
from realtime.errors import ServeError
from realtime.network.certificate import server_context
from realtime.network.hosts import Hosts
from realtime.sources import dicom_port
from realtime.sources.dicom_node import Arrivals, DicomNode, Outcome
from realtime.sources.dicom_port import MOST_CONNECTIONS
from realtime.sources.files.formats import parse
from realtime.sources.files.volume_file import VolumeFile
from realtime.sources.run_boundaries import Plan, RunOver, Scan

from ...tools import DCMTK
from . import test_dicom
from .conftest import Scan as ScanOfNoise
from .conftest import Served
from .test_afni import own_address
from .test_dicom import VOXELS, mosaic, single, written

PATIENCE_S = 60.0
TR_S = 0.1
SLOW_TR_S = 1.0
"""Before a run with this TR is over, two senders have started."""
N_VOLUMES = 3


class Node:
    """A node in this process, and what comes from it."""

    def __init__(self, address: str, scans: AsyncIterator[Scan | RunOver], folder: Path) -> None:
        self.address = address
        self.port = int(address.partition("?")[0].rpartition(":")[2])
        self._folder = folder
        self._scans = scans

    async def heard(self) -> Scan | RunOver:
        return await anext(self._scans)

    async def records(self, *expected: tuple[str, int] | None) -> None:
        """Acknowledge the next volumes, each as its series' number and its index; None is a run's end."""
        for each in expected:
            news = await self.heard()
            if isinstance(news, RunOver):
                assert each is None
                continue
            assert (news.series.partition("x")[0], news.index) == each
            await news.answer(wire.Ack(run_id="r", index=news.index))

    async def store(self, *objects: Dataset, host: str = "127.0.0.1", options: tuple[str, ...] = ()) -> str:
        """Send objects in one association; what storescu says."""
        names = []
        for number, each in enumerate(objects):
            names.append(self._folder / f"{each.SOPInstanceUID}-{number}.dcm")
            each.save_as(names[-1], enforce_file_format=True)
        call = options if "-aec" in options else (*options, "-aec", "NODE")
        sending = await asyncio.create_subprocess_exec(
            DCMTK.path(), "-v", *call, host, str(self.port), *map(str, names),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await sending.communicate()
        return said.decode()

    def storing(self, *objects: Dataset) -> asyncio.Task[str]:
        return asyncio.create_task(self.store(*objects))


@asynccontextmanager
async def listening(
    folder: Path, address: str = "127.0.0.1:0?aet=NODE", tr_s: float = TR_S, **options: Any
) -> AsyncIterator[Node]:
    plan = Plan(subject=1, run_id="r", n_volumes=N_VOLUMES, tr_s=tr_s)
    of_series = {"series": "", "first_number": None, "echo": None, "unfinished": None}
    node = DicomNode(f"dicom://{address}", plan, **{"hosts": Hosts(), "tls": None} | of_series | options)
    started = await node.start()
    scans: Any = node.scans()
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield Node(started, scans, folder)
    finally:
        await node.stop()
        await scans.aclose()


def object_of(number: int, series: int = 7, voxels: np.ndarray = VOXELS) -> FileDataset:
    """A volume."""
    made = mosaic(voxels, number, series)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID
    return made


def slices_of(number: int, n_slices: int = VOXELS.shape[2]) -> list[Dataset]:
    made: list[Dataset] = [
        single(VOXELS, slice_, 1 + (number - 1) * n_slices + slice_, number) for slice_ in range(n_slices)
    ]
    for each in made:
        each.SOPInstanceUID = each.file_meta.MediaStorageSOPInstanceUID
    return made


def n_stored(said: str) -> int:
    return said.count("Received Store Response (Success)")


@pytest.mark.slow
def test_a_run_of_a_scanner_is_recorded(
    serve: Callable[..., Served],
    make_scan: type[ScanOfNoise],
    closed_account: Callable[[Path], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """By ``realtime serve``, some in one association, and some in one for each."""
    monkeypatch.setitem(test_dicom.GRID, "sizes_mm", (1.8, 1.8, 1.8))
    monkeypatch.setitem(test_dicom.GRID, "origin_mm", (-5.4, -5.4, -5.4))
    scan = make_scan(n_volumes=12, dtype="uint16")
    served = serve("--volumes", "12", source="dicom://127.0.0.1:0?aet=NODE")
    node = Node(served.address, aiter_of_nothing(), tmp_path)

    async def send() -> None:
        objects = [object_of(1 + index, 7, scan.voxels(index)) for index in range(12)]
        assert n_stored(await node.store(*objects[:9])) == 9
        for each in objects[9:]:
            assert n_stored(await node.store(each)) == 1

    asyncio.run(send())
    (folder,) = served.out.glob("sub-01_task-realtime_series-7x*")
    assert closed_account(folder)["received"] == 12
    assert served.interrupt() == 0
    assert "Traceback" not in served.log()


async def aiter_of_nothing() -> AsyncIterator[Scan | RunOver]:
    return
    yield


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_volume_is_answered_once_it_is_recorded_or_refused(tmp_path: Path, is_recorded: bool) -> None:
    async def check() -> None:
        async with listening(tmp_path) as node:
            storing = node.storing(object_of(1))
            scan = await node.heard()
            assert isinstance(scan, Scan)
            assert np.array_equal(np.frombuffer(scan.payload, "<f4").reshape(VOXELS.shape), VOXELS)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(storing), 0.2)
            if is_recorded:
                await scan.answer(wire.Ack(run_id="r", index=0))
            else:
                await scan.answer(wire.Refused(run_id="r", code="index", message="too many", index=0))
            said = await storing
            assert n_stored(said) == is_recorded
            assert ("CannotUnderstand" in said.replace(" ", "")) is not is_recorded

    asyncio.run(check())


def test_slices_are_kept_until_their_volume_is_complete(tmp_path: Path) -> None:
    async def check() -> None:
        async with listening(tmp_path) as node:
            storing = node.storing(*slices_of(1), *slices_of(2), *slices_of(3))
            await node.records(("7", 0), ("7", 1), ("7", 2), None)
            assert n_stored(await storing) == 3 * VOXELS.shape[2]

    asyncio.run(check())


def test_a_series_that_ran_beside_another_is_passed_over(tmp_path: Path) -> None:
    """Its objects are kept, as they may be the next run, and then forgotten."""

    async def check() -> None:
        async with listening(tmp_path) as node:
            objects = [object_of(number, series) for number in (1, 2, 3) for series in (7, 8)]
            storing = node.storing(*objects[:-1])
            await node.records(("7", 0), ("7", 1), ("7", 2), None)
            assert n_stored(await storing) == 5
            storing = node.storing(objects[-1], object_of(1, 9))
            await node.records(("9", 0))
            assert n_stored(await storing) == 2

    asyncio.run(check())


def test_the_next_series_is_followed_from_its_first_volume(tmp_path: Path) -> None:
    """The one before it was broken off, which shows when it is silent for long."""

    async def check() -> None:
        async with listening(tmp_path) as node:
            storing = node.storing(object_of(1, 7), object_of(1, 8), object_of(2, 8))
            await node.records(("7", 0), None, ("8", 0), ("8", 1))
            assert n_stored(await storing) == 3
            storing = node.storing(object_of(3, 8))
            await node.records(("8", 2), None)
            assert n_stored(await storing) == 1

    asyncio.run(check())


def test_a_run_goes_on_after_a_restart(tmp_path: Path) -> None:
    """The volumes before it are not stored again, so their numbers are not learnt from them."""

    async def check() -> None:
        async with listening(tmp_path) as node:
            storing = node.storing(object_of(1))
            news = await node.heard()
            assert isinstance(news, Scan)
            await news.answer(wire.Ack(run_id="r", index=0))
            await storing
        async with listening(tmp_path, unfinished=f"r_series-{news.series}") as node:
            storing = node.storing(object_of(2), object_of(3))
            await node.records(("7", 1), ("7", 2))
            assert n_stored(await storing) == 2
            storing = node.storing(object_of(5, 8), object_of(6, 8))
            await node.records(None, ("8", 0), ("8", 1))  # of the next series the numbers are learnt
            await storing

    asyncio.run(check())


def kept_in(arrivals: Arrivals, *names: str) -> None:
    for name in names:
        series, number = map(int, name.split("."))
        arrivals.keep(name, written(object_of(number, series)))


def test_what_is_kept_lies_on_the_disk_only_as_long_as_needed() -> None:
    arrivals = Arrivals(wake=lambda: None)
    for successor in (8, 9, 10):  # each run is followed by another one that waits already
        names = [f"{successor}.{number}" for number in (1, 2)]
        kept_in(arrivals, "7.1", *names)
        one_run = arrivals.n_kept_bytes
        for name in (*reversed(names), names[0]):
            arrivals.again(name)
        arrivals.forget_kept()
        arrivals.again("7.1")
        told = list(arrivals.look(0.0))
        assert [each.name for each in told] == names[::-1]
        assert all(isinstance(each.holds, VolumeFile) for each in told)
        assert one_run == len(written(object_of(1))) * 3
        assert arrivals.n_kept_bytes == 0
    arrivals.close()


def test_the_series_that_waited_is_told_before_one_that_has_just_come() -> None:
    arrivals = Arrivals(wake=lambda: None)
    kept_in(arrivals, "8.1", "8.2")
    third = written(object_of(1, 9))
    arrivals.add("9.1", third, parse("object.dcm", third), Outcome(1))
    for name in ("8.1", "8.2"):
        arrivals.again(name)
    arrivals.forget_kept()
    assert [each.name for each in arrivals.look(0.0)] == ["8.1", "8.2", "9.1"]
    arrivals.close()


def test_an_object_of_a_waiting_series_may_come_twice_at_once(tmp_path: Path) -> None:
    async def check() -> None:
        async with listening(tmp_path, tr_s=SLOW_TR_S) as node:
            storing = node.storing(object_of(1))
            await node.records(("7", 0))
            await storing
            twice = [node.storing(object_of(1, 8)) for _ in range(2)]
            again = asyncio.create_task(node.records(None, ("8", 0)))
            assert [n_stored(await each) for each in twice] == [1, 1]
            await again

    asyncio.run(check())


def test_what_is_more_than_may_be_kept_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with listening(tmp_path, tr_s=SLOW_TR_S) as node:
            storing = node.storing(object_of(1))
            await node.records(("7", 0))
            await storing
            monkeypatch.setattr(
                "realtime.sources.dicom_node.MOST_KEPT_BYTES", int(1.5 * len(written(object_of(1))))
            )
            waiting = asyncio.create_task(node.records(None, ("8", 0)))
            said = await node.store(object_of(1, 8), object_of(2, 8))
            assert n_stored(said) == 1
            assert "OutOfResources" in said.replace(" ", "")
            await waiting

    asyncio.run(check())


def test_objects_that_wait_for_their_answers_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = np.tile(VOXELS, (8, 8, 4))  # so large that the request for an association counts for nothing
    n_bytes = len(written(object_of(1, voxels=voxels)))
    monkeypatch.setattr("realtime.sources.dicom_port.MOST_WAITING_BYTES", int(1.5 * n_bytes))

    async def check() -> None:
        async with listening(tmp_path) as node:
            first = node.storing(object_of(1, voxels=voxels))
            news = await node.heard()
            assert isinstance(news, Scan)
            said = await node.store(object_of(2, voxels=voxels))
            assert n_stored(said) == 0
            assert "OutOfResources" in said.replace(" ", "")
            await news.answer(wire.Ack(run_id="r", index=news.index))
            assert n_stored(await first) == 1
            second = node.storing(object_of(2, voxels=voxels))
            await node.records(("7", 1))
            assert n_stored(await second) == 1

    asyncio.run(check())


def without_pixels() -> Dataset:
    made = object_of(1)
    del made.PixelData
    return made


def of_class(uid: str) -> Dataset:
    made = object_of(1)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = UID(uid)
    return made


@pytest.mark.parametrize(
    ("bad", "said", "logged", "n_lines"),
    [
        (of_class(CTImageStorage), "SOPClassNotSupported", "refused objects of class CT Image Storage", 1),
        (without_pixels(), "CannotUnderstand", "expected PixelData", 2),
    ],
)
def test_what_is_no_mr_image_is_refused_with_a_status_and_a_line(
    bad: Dataset, said: str, logged: str, n_lines: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for all objects of a class in an association; one for each that cannot be read."""

    async def check() -> None:
        async with listening(tmp_path) as node:
            answer = await node.store(bad, bad, options=("--no-halt",))
            assert n_stored(answer) == 0
            assert answer.replace(" ", "").count(said) == 2
            storing = node.storing(object_of(1))
            await node.records(("7", 0))
            assert n_stored(await storing) == 1

    asyncio.run(check())
    assert sum(logged in record.getMessage() for record in caplog.records) == n_lines


def test_a_sender_must_call_the_title_if_there_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with listening(tmp_path) as node:
            assert node.address == f"dicom://127.0.0.1:{node.port}?aet=NODE"
            assert "Called AE Title Not Recognized" in await node.store(
                object_of(1), options=("-aec", "PACS")
            )
            assert "calls 'PACS': expected 'NODE'" in caplog.text
        async with listening(tmp_path, "127.0.0.1:0") as node:
            storing = asyncio.create_task(node.store(object_of(1), options=("-aec", "ANY-SCP")))
            await node.records(("7", 0))
            assert n_stored(await storing) == 1

    asyncio.run(check())


def test_a_sender_must_have_one_of_the_titles_if_some_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with listening(tmp_path, "127.0.0.1:0?aet=NODE&from=MR1&from=MR%202") as node:
            assert node.address == f"dicom://127.0.0.1:{node.port}?aet=NODE&from=MR1&from=MR%202"
            refused = await node.store(object_of(1), options=("-aet", "PACS"))
            assert "Calling AE Title Not Recognized" in refused
            assert "of 'PACS' at 127.0.0.1, which calls 'NODE': expected 'NODE', called by MR1" in caplog.text
            for index, title in enumerate(("MR1", "MR 2")):
                storing = asyncio.create_task(node.store(object_of(1 + index), options=("-aet", title)))
                await node.records(("7", index))
                assert n_stored(await storing) == 1

    asyncio.run(check())


def test_a_sender_must_have_a_certificate_if_some_are_named(
    tmp_path: Path, make_certificate: Callable[..., tuple[Path, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    made = {}
    for name in ("node", "scanner", "stranger"):
        (tmp_path / name).mkdir()
        made[name] = make_certificate(tmp_path / name, "127.0.0.1")
    node_certificate, node_key = made["node"]
    tls = server_context(node_certificate, node_key, made["scanner"][0])
    trust = ("--add-cert-file", str(node_certificate))

    def with_certificate(name: str) -> tuple[str, ...]:
        certificate, key = made[name]
        return ("--enable-tls", str(key), str(certificate), *trust)

    async def check() -> None:
        async with listening(tmp_path, tls=tls) as node:
            for options in (("--anonymous-tls", *trust), with_certificate("stranger"), ()):
                assert n_stored(await node.store(object_of(1), options=options)) == 0
            storing = asyncio.create_task(node.store(object_of(1), options=with_certificate("scanner")))
            await node.records(("7", 0))
            assert n_stored(await storing) == 1

    asyncio.run(check())
    assert "peer did not return a certificate" in caplog.text
    assert "certificate verify failed" in caplog.text
    with pytest.raises(ServeError, match="certificates of those who may connect"):
        server_context(node_certificate, node_key, node_key)


@pytest.mark.parametrize("is_established", [False, True])
def test_silent_connections_give_way(tmp_path: Path, is_established: bool) -> None:
    """As a flood of connections, or of associations that send nothing."""

    async def check() -> None:
        async with listening(tmp_path) as node:
            with contextlib.ExitStack() as silent:
                for _ in range(MOST_CONNECTIONS + 3):
                    each = silent.enter_context(socket.create_connection(("127.0.0.1", node.port)))
                    if is_established:
                        await asyncio.to_thread(associate, each)
                storing = node.storing(object_of(1))
                await node.records(("7", 0))
                assert n_stored(await storing) == 1

    asyncio.run(check())


def associate(connection: socket.socket) -> None:
    """Ask for an association for C-ECHO, by the bytes of the standard (PS3.8), and wait for the answer."""

    def item(kind: int, content: bytes) -> bytes:
        return bytes((kind, 0)) + len(content).to_bytes(2, "big") + content

    syntaxes = item(0x30, b"1.2.840.10008.1.1") + item(0x40, b"1.2.840.10008.1.2")
    user = item(0x50, item(0x51, (16_384).to_bytes(4, "big")) + item(0x52, b"1.2.3"))
    contexts = item(0x20, bytes((1, 0, 0, 0)) + syntaxes)
    titles = b"NODE".ljust(16) + b"FLOOD".ljust(16) + bytes(32)
    body = b"\0\1\0\0" + titles + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + user
    connection.sendall(b"\1\0" + len(body).to_bytes(4, "big") + body)
    assert connection.recv(1) == b"\2"


def test_no_more_is_read_than_an_object_may_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realtime.sources.dicom_port.MOST_OBJECT_BYTES", 100_000)
    cut, counted = dicom_port._Peer.cut, []

    def noting(peer: dicom_port._Peer, expected: str) -> None:
        counted.append(peer.n_bytes)
        cut(peer, expected)

    monkeypatch.setattr(dicom_port._Peer, "cut", noting)

    async def check() -> None:
        async with listening(tmp_path) as node:
            assert n_stored(await node.store(object_of(1, voxels=np.tile(VOXELS, (8, 8, 4))))) == 0
            with socket.create_connection(("127.0.0.1", node.port)) as huge:
                huge.sendall(b"\1\0\xff\xff\xff\xff" + bytes(100))
                with contextlib.suppress(ConnectionError):
                    assert await asyncio.to_thread(huge.recv, 1) in (b"", b"\7")  # closed, or told A-ABORT
            storing = node.storing(object_of(1))
            await node.records(("7", 0))
            assert n_stored(await storing) == 1

    asyncio.run(check())
    assert caplog.text.count("expected an object of at most 100000 bytes") == 2
    assert max(counted) <= 100_000  # what one sender announces is not counted against the others
    assert "Traceback" not in caplog.text


def test_other_machines_need_to_be_named_and_come_over_tls(
    tmp_path: Path, make_certificate: Callable[..., tuple[Path, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    """This machine's own other address stands for another machine."""
    here = own_address()
    certificate, key = make_certificate(tmp_path, here)
    tls = server_context(certificate, key)
    over_tls = ("--anonymous-tls", "--add-cert-file", str(certificate))

    async def check() -> None:
        async with listening(tmp_path, f"{here}:0?aet=NODE", hosts=Hosts([here]), tls=tls) as node:
            assert n_stored(await node.store(object_of(1), host=here)) == 0
            storing = asyncio.create_task(node.store(object_of(1), host=here, options=over_tls))
            await node.records(("7", 0))
            assert n_stored(await storing) == 1
        async with listening(tmp_path, f"{here}:0", hosts=Hosts(["192.0.2.1"]), tls=tls) as node:
            assert n_stored(await node.store(object_of(1), host=here, options=over_tls)) == 0

    asyncio.run(check())
    assert f"refused a connection from {here}" in caplog.text


def test_an_object_without_an_answer_is_refused_when_the_node_stops(tmp_path: Path) -> None:
    async def check() -> None:
        async with listening(tmp_path) as node:
            storing = node.storing(object_of(1))
            await node.heard()
        assert n_stored(await storing) == 0

    asyncio.run(check())


def test_machines_that_cannot_reach_the_port_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with listening(tmp_path, hosts=Hosts(["192.0.2.1"])):
            pass

    asyncio.run(check())
    assert "which cannot reach 127.0.0.1" in caplog.text


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("dicom://127.0.0.1", "address like"),
        ("dicom://127.0.0.1:11112?aet=", "at most 16 characters"),
        ("dicom://127.0.0.1:11112?aet=A_TITLE_THAT_IS_TOO_LONG", "at most 16 characters"),
        ("dicom://127.0.0.1:11112?aet=A&aet=B", "address like dicom://"),
        ("dicom://127.0.0.1:11112?title=A", "address like dicom://"),
        ("dicom://127.0.0.1:11112?aet=A&from=", "at most 16 characters"),
        ("dicom://scanner:11112", "IP address"),
        ("dicom://0.0.0.0:11112", "--allow, --source-tls-cert"),
        ("dicom://192.0.2.1:11112?aet=A", "--allow, --source-tls-cert"),
    ],
)
@pytest.mark.parametrize(
    ("hosts", "tls"), [(Hosts(), None), (Hosts(["192.0.2.1"]), None), (Hosts(), ssl.create_default_context())]
)
def test_addresses_that_are_malformed_or_open_to_others_are_refused(
    address: str, expected: str, hosts: Hosts, tls: ssl.SSLContext | None
) -> None:
    plan = Plan(subject=1, run_id="r", n_volumes=N_VOLUMES, tr_s=TR_S)
    with pytest.raises(ServeError, match=expected):
        DicomNode(
            address, plan, hosts=hosts, tls=tls, series="", first_number=None, echo=None, unfinished=None
        )
