"""A sender that implements AFNI's real-time protocol, without our code, against a served runtime."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes
from numpy.typing import ArrayLike

from realtime import wire
from realtime.errors import ServeError, WireError
from realtime.network.hosts import Hosts
from realtime.sources.afni import MOST_CONTROL_CONNECTIONS, AfniScanner, data_port
from realtime.sources.afni_header import Header, parse
from realtime.sources.orient import to_ras
from realtime.sources.run_boundaries import RunOver
from realtime.sources.run_boundaries import Scan as RunScan

from .conftest import DemoScan, Scan, Served

PATIENCE_S = 60.0
RUN_ID = "sub-01_task-realtime"
MAGIC = b"Et Earello Endorenna utulien!!"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def own_address() -> str:
    """An address of this machine that is not loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        return str(probe.getsockname()[0])


def connect(port: int) -> socket.socket:
    """Connect to a port that the other side is about to open."""
    end_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        except ConnectionRefusedError:
            assert time.monotonic() < end_s
            time.sleep(0.01)


def control_port(address: str) -> int:
    return int(address.rpartition(":")[2])


def begin(address: str, commands: list[str]) -> socket.socket:
    """Send the data port to the control port, then the commands to the data port."""
    port = free_port()
    with connect(control_port(address)) as control:
        control.sendall(f"tcp:localhost:{port}\0".encode())
        assert control.recv(1) == b""  # the other side closes once it listens
    data = connect(port)
    tell(data, commands)
    return data


def tell(data: socket.socket, commands: list[str]) -> None:
    data.sendall("\n".join(commands).encode() + b"\0")


def oblique(affine: ArrayLike) -> str:
    return "OBLIQUE_XFORM " + " ".join(f"{number:f}" for number in (LPS @ np.array(affine)).ravel())


def commands(affine: ArrayLike, shape: tuple[int, int, int] = (6, 6, 6), **changes: str) -> list[str]:
    """As Dimon sends them for whole volumes."""
    x, y, z = shape
    said = {
        "ACQUISITION_TYPE": "3D+timing",
        "ZORDER": "seq",
        "TPATTERN": "explicit " + " ".join(f"{0.0667 * k:.3f}" for k in range(z)),
        "TR": "1.333333",
        "XYFOV": f"{1.8 * x} {1.8 * y} {1.8 * z}",
        "XYMATRIX": f"{x} {y} {z}",
        "XYZAXES": "L-R P-A I-S",
        "DATUM": "short",
        "BYTEORDER": "LSB_FIRST",
        "OBLIQUE_XFORM": oblique(affine).partition(" ")[2],
        "DRIVE_AFNI": "OPEN_WINDOW axialimage",
        "NOTE": "created remotely\f    starting with file : 'M\u00fcller/IM001.dcm'\fXYMATRIX : none",
    }
    return [f"{name} {value}" for name, value in (said | changes).items() if value]


def x_fastest(voxels: np.ndarray, dtype: str = "<i2") -> bytes:
    return voxels.astype(dtype).tobytes(order="F")


@pytest.mark.slow
def test_the_demos_run_gives_the_same_frames_as_over_our_own_messages(
    frames_over: Callable[..., dict[str, bytes]], demo_frames: dict[str, bytes], demo_scan: DemoScan
) -> None:
    """Sent like a scanner may send it: LPS+ axes, slice by slice, interleaved."""
    senders = []

    def connect(address: str) -> Callable[[int], None]:
        start = demo_scan.start
        right, front, up = (row[3] for row in start.affine[:3])
        x, y, _ = start.shape
        said = commands(
            start.affine,
            start.shape,
            ACQUISITION_TYPE="2D+zt",
            ZORDER="alt",
            XYZAXES="R-L A-P I-S",
            XYZFIRST=f"{right + 1.8 * (x - 1):f}R {front + 1.8 * (y - 1):f}A {-up:f}I",
            BYTEORDER="MSB_FIRST",
            OBLIQUE_XFORM="",
        )
        senders.append(begin(address, said))

        def send(index: int) -> None:
            voxels = demo_scan.voxels(index)[::-1, ::-1]
            for first in (0, 1):
                senders[0].sendall(x_fastest(voxels[..., first::2], ">i2"))

        return send

    assert frames_over("afni+tcp://127.0.0.1:0", RUN_ID, connect) == demo_frames
    senders[0].close()


@pytest.mark.parametrize("ends_by", ["close", "marker"])
def test_runs_are_recorded(
    serve: Callable[..., Served],
    make_scan: type[Scan],
    closed_account: Callable[[Path], dict[str, Any]],
    ends_by: str,
) -> None:
    scan = make_scan(n_volumes=12)
    served = serve("--volumes", "12", source="afni+tcp://127.0.0.1:0")
    said = commands(scan.start.affine)
    runs = {RUN_ID: 12, f"{RUN_ID}_take-2": 7, f"{RUN_ID}_take-3": 9}
    data = begin(served.address, said)
    for number, (folder, n_volumes) in enumerate(runs.items()):
        if number and ends_by == "marker":  # the next run is on the same connection
            tell(data, said)
        elif number:
            data = begin(served.address, said)
        for index in range(n_volumes):
            data.sendall(x_fastest(scan.voxels(index)))
        if ends_by == "marker":
            data.sendall(MAGIC.ljust(432, b"\0"))
        else:
            data.close()
        summary = closed_account(served.out / folder)
        assert (summary["received"], summary["missing"]) == (n_volumes, 12 - n_volumes)
    data.close()
    assert served.interrupt() == 0
    assert "Traceback" not in served.log()


def test_an_invalid_run_is_closed_and_the_next_is_accepted(
    serve: Callable[..., Served], make_scan: type[Scan], closed_account: Callable[[Path], dict[str, Any]]
) -> None:
    scan = make_scan(n_volumes=12)
    served = serve("--volumes", "12", source="afni+tcp://127.0.0.1:0")
    affine = scan.start.affine
    for text in (b"tcp:192.168.1.7:9000\0", b"shm:afni:1M\0", b"x" * 2_000, b"tcp:localhost:22\0", b""):
        with connect(control_port(served.address)) as control:
            control.sendall(text)
            control.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert control.recv(1) == b""
    for bad in (["TR 2"], commands(affine, XYMATRIX="6 6 2000")):
        with begin(served.address, bad) as data, contextlib.suppress(ConnectionError):
            data.sendall(x_fastest(scan.voxels(0)))
            assert data.recv(1) == b""
    with begin(served.address, commands(affine)) as data:
        for index in range(14):  # two more than planned
            data.sendall(x_fastest(scan.voxels(min(index, 11))))
        data.sendall(b"half a volume")
    assert closed_account(served.out / RUN_ID)["received"] == 12
    assert not (served.out / f"{RUN_ID}_take-2").exists()
    log = served.log()
    for said in (
        "expected tcp:localhost:PORT",
        "expected the command XYMATRIX",
        "from 1 to 1024 voxels",
        "got volume 13",
        "13 of its 432 bytes came",
    ):
        assert said in log, said
    assert "Traceback" not in log


def test_a_second_sender_is_refused_while_one_sends(
    serve: Callable[..., Served], make_scan: type[Scan], closed_account: Callable[[Path], dict[str, Any]]
) -> None:
    scan = make_scan(n_volumes=12)
    served = serve("--volumes", "12", source="afni+tcp://127.0.0.1:0")
    with begin(served.address, commands(scan.start.affine)) as data:
        port = free_port()
        with connect(control_port(served.address)) as control:
            control.sendall(f"tcp:localhost:{port}\0".encode())
            assert control.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        for index in range(12):
            data.sendall(x_fastest(scan.voxels(index)))
        assert closed_account(served.out / RUN_ID)["received"] == 12
    assert "got another" in served.log()


def sent(header: Header, voxels: np.ndarray) -> np.ndarray:
    return header.volume([voxels.astype(header.sent).tobytes(order="F")])


@pytest.mark.parametrize("axes", [p for p in itertools.product(("RL", "LR"), ("AP", "PA"), ("IS", "SI"))])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_axes_in_any_direction_and_order_become_ras(
    axes: tuple[str, str, str], order: tuple[int, int, int]
) -> None:
    """Each voxel has the sender's position: its indices times the voxel's size along each axis."""
    codes, shape, sizes_mm = [axes[axis] for axis in order], (3, 4, 5), np.array([1.0, 2.0, 3.0])
    header = parse(
        "\n".join(
            [
                "ACQUISITION_TYPE 3D+t",
                f"XYZAXES {' '.join(f'{code[0]}-{code[1]}' for code in codes)}",
                "XYFOV 3 8",
                "ZDELTA 3",
                "XYMATRIX 3 4",
                "ZNUM 5",
                "XYZFIRST 10 20 30",
            ]
        ).encode()
    )
    voxels = np.arange(60).reshape(shape)
    turned, affine = to_ras(sent(header, voxels), header.affine)
    assert aff2axcodes(np.array(affine)) == ("R", "A", "S")
    for indices in ((0, 0, 0), (2, 1, 3)):
        first = dict(zip("RLAPIS", (1, -1, 1, -1, -1, 1), strict=True))
        place = np.zeros(3)
        for code, index, size_mm, start_mm in zip(codes, indices, sizes_mm, (10, 20, 30), strict=True):
            axis = {"R": 0, "L": 0, "A": 1, "P": 1, "I": 2, "S": 2}[code[0]]
            place[axis] = first[code[0]] * start_mm + first[code[1]] * index * size_mm
        found = np.linalg.solve(np.array(affine), [*place, 1])[:3]
        assert turned[tuple(np.rint(found).astype(int))] == voxels[indices]


def test_the_default_origin_is_the_centre_and_the_last_command_counts() -> None:
    said = "XYZAXES R-L A-P I-S\nXYFOV 8 0 10\nXYMATRIX 4 4 5"
    assert np.allclose(parse(said.encode()).affine[:3, 3], (3, 3, -4))
    said += "\nXYZFIRST 1 2A 3\nZFIRST 7S"
    assert np.allclose(parse(said.encode()).affine[:3, 3], (1, 2, 7))
    assert np.allclose(parse(f"{said}\nXYZFIRST 1 2 3".encode()).affine[:3, 3], (1, 2, -3))


def test_interleaved_slices_are_sorted() -> None:
    said = "XYZAXES L-R P-A I-S\nXYFOV 2 2 5\nXYMATRIX 2 2 5\nDATUM byte"
    voxels = np.arange(20).reshape(2, 2, 5)
    for order, slices in (("alt", (0, 2, 4, 1, 3)), ("seq", range(5))):
        header = parse(f"{said}\nZORDER {order}".encode())
        images = [voxels[..., k].astype(np.uint8).tobytes(order="F") for k in slices]
        assert header.image_bytes == 4
        assert np.array_equal(header.volume(images), voxels)


@pytest.mark.parametrize(("order", "sign"), [("LSB_FIRST", "<"), ("MSB_FIRST", ">")])
@pytest.mark.parametrize(
    ("datum", "dtype"), [("short", "i2"), ("float", "f4"), ("byte", "u1"), ("int", "i4"), ("double", "f8")]
)
def test_voxels_of_any_type_and_byte_order(order: str, sign: str, datum: str, dtype: str) -> None:
    header = parse("\n".join(commands(np.eye(4), BYTEORDER=order, DATUM=datum)).encode())
    voxels = np.random.default_rng(0).integers(0, 255, (6, 6, 6)).astype(dtype)
    taken = header.volume([voxels.astype(sign + dtype).tobytes(order="F")])
    assert taken.dtype == header.taken
    assert np.array_equal(taken, voxels)


@pytest.mark.parametrize("acquisition", ["3D+timing", "2D+zt"])
@pytest.mark.parametrize(("echo", "taken"), [(None, 1), (1, 1), (2, 2), (3, 3)])
def test_one_echo_of_several_is_taken(acquisition: str, echo: int | None, taken: int) -> None:
    """Each image, a volume or a slice, comes for every echo before the next one (rtfeedme.c)."""
    said = commands(np.eye(4), ACQUISITION_TYPE=acquisition, NUM_CHAN="3", ECHO_TIMES="12 30.5 48")
    header = parse("\n".join(said).encode(), echo)
    echoes = {number: np.arange(216).reshape(6, 6, 6) + 1_000 * number for number in (1, 2, 3)}
    slices = [...] if acquisition.startswith("3D") else [np.s_[..., k] for k in range(6)]
    images = [x_fastest(echoes[number][part]) for part in slices for number in (1, 2, 3)]
    assert header.images == len(images)
    assert np.array_equal(header.volume(images), echoes[taken])


def test_echoes_are_combined_with_the_weights_of_the_first_volume() -> None:
    """w = TE exp(-TE / T2*): of a signal that decays by one T2*, they are those of the formula."""
    te_ms, t2star_ms = np.array([12.0, 30.5, 48.0]), 35.0
    said = "\n".join(commands(np.eye(4), DATUM="float", NUM_CHAN="3", ECHO_TIMES="12 30.5 48"))

    async def volumes() -> list[np.ndarray]:
        async with listening(echo="combine") as (heard, address):
            data = await asyncio.to_thread(begin, address, said.split("\n"))
            taken = []
            for scale in (1e6, 5e5):
                for decay in np.exp(-te_ms / t2star_ms):
                    data.sendall(x_fastest(np.full((6, 6, 6), scale * decay), "<f4"))
                scan = await heard.get()
                assert scan.dtype == "float32"
                taken.append(np.frombuffer(scan.payload, "<f4"))
            data.close()
            return taken

    weights = te_ms * np.exp(-te_ms / t2star_ms)
    expected = (weights / weights.sum()) @ np.exp(-te_ms / t2star_ms)
    for taken, scale in zip(asyncio.run(volumes()), (1e6, 5e5), strict=True):
        assert np.allclose(taken, scale * expected, rtol=1e-4)


@pytest.mark.parametrize("times", ["", "12 30.5", "12 0 48", "30 12 48", "12 x 48"])
def test_echoes_without_their_times_are_not_combined(times: str) -> None:
    said = "\n".join(commands(np.eye(4), NUM_CHAN="3", ECHO_TIMES=times)).encode()
    with pytest.raises(WireError, match="ECHO_TIMES"):
        parse(said, "combine")


def test_an_echo_that_is_not_sent_is_refused() -> None:
    with pytest.raises(WireError, match="--echo from 1 to 2, .* got --echo 3"):
        parse("\n".join(commands(np.eye(4), NUM_CHAN="2")).encode(), 3)


@pytest.mark.parametrize(
    ("said", "tr_s"),
    [("1.333333", 1.333333), ("60", 60), ("0", None), ("1333.333", 1.333333), ("720", 0.72), ("61", 0.061)],
)
def test_a_tr_that_can_only_be_ms_is_taken_as_such(said: str, tr_s: float | None) -> None:
    header = parse("\n".join(commands(np.eye(4), TR=said)).encode())
    assert header.tr_s == (None if tr_s is None else pytest.approx(tr_s))
    assert header.is_tr_in_ms == (float(said) > 60)


words = st.one_of(
    st.sampled_from(
        ["1", "0", "-3", "6.5", "nan", "1e999", "30R", "R-L", "IS", "alt", "3D+t", "float", "2D+z"]
    ),
    st.text(max_size=8),
    st.integers().map(str),
)
names = st.sampled_from(
    ["XYFOV", "XYMATRIX", "XYZAXES", "ZNUM", "ZDELTA", "TR", "DATUM", "BYTEORDER", "ZORDER", "NUM_CHAN"]
    + ["ACQUISITION_TYPE", "OBLIQUE_XFORM", "XYZFIRST", "ZFIRST", "NOTE"]
)
lines = st.tuples(names, st.lists(words, max_size=16)).map(lambda line: " ".join((line[0], *line[1])))


# Senders that hang, in this process


@asynccontextmanager
async def listening(**options: Any) -> AsyncIterator[tuple[asyncio.Queue[Any], str]]:
    """What comes from an AFNI source, and its address."""
    scanner, heard = AfniScanner("tcp://127.0.0.1:0", **options), asyncio.Queue[Any]()

    async def hear() -> None:
        async for each in scanner.scans():
            heard.put_nowait(each)

    address = await scanner.start()
    hearing = asyncio.create_task(hear())
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield heard, address
    finally:
        hearing.cancel()
        await scanner.stop()


@pytest.mark.parametrize("stage", ["connected", "commands", "half a volume", "a volume"])
def test_a_sender_that_hangs_gives_way_to_the_next(
    make_scan: type[Scan], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr("realtime.sources.afni.SILENT_TURN_S", 0.0)
    scan = make_scan()
    said, voxels = commands(scan.start.affine), np.asfortranarray(scan.voxels(0)).tobytes("F")
    sent = {"commands": b"", "half a volume": voxels[:100], "a volume": voxels}

    async def check() -> None:
        async with listening() as (heard, address):
            if stage == "connected":
                port = free_port()
                control = await asyncio.to_thread(connect, control_port(address))
                control.sendall(f"tcp:localhost:{port}\0".encode())
                hanging = await asyncio.to_thread(connect, port)
                control.close()
            else:
                hanging = await asyncio.to_thread(begin, address, said)
                hanging.sendall(sent[stage])
            if stage == "a volume":
                assert isinstance(await heard.get(), RunScan)
            following = await asyncio.to_thread(begin, address, said)
            following.sendall(voxels)
            assert isinstance(await heard.get(), RunOver)
            assert (await heard.get()).index == 0
            for each in (hanging, following):
                each.close()

    asyncio.run(check())


def test_a_sender_that_sends_is_not_disconnected_for_another(make_scan: type[Scan]) -> None:
    scan = make_scan()
    voxels = np.asfortranarray(scan.voxels(0)).tobytes("F")

    async def check() -> None:
        async with listening() as (heard, address):
            sending = await asyncio.to_thread(begin, address, commands(scan.start.affine))
            sending.sendall(voxels)
            assert (await heard.get()).index == 0
            control = await asyncio.to_thread(connect, control_port(address))
            control.sendall(f"tcp:localhost:{free_port()}\0".encode())
            assert await asyncio.to_thread(control.recv, 1) == b""
            sending.sendall(voxels)
            assert (await heard.get()).index == 1
            sending.close()
            control.close()

    asyncio.run(check())


def test_a_refused_run_is_passed_over_and_the_next_on_its_connection_is_heard(
    make_scan: type[Scan], caplog: pytest.LogCaptureFixture
) -> None:
    scan = make_scan()
    said, voxels = commands(scan.start.affine), x_fastest(scan.voxels(0))

    async def check() -> None:
        async with listening() as (heard, address):
            data = await asyncio.to_thread(begin, address, said)
            data.sendall(voxels)
            await (await heard.get()).answer(wire.Refused(run_id="", code="tr", message="expected the TR"))
            data.sendall(voxels * 3 + MAGIC.ljust(432, b"\0"))
            tell(data, said)
            data.sendall(voxels)
            assert isinstance(await heard.get(), RunOver)
            assert (await heard.get()).index == 0
            data.close()

    asyncio.run(check())
    assert "passed over up to its end: expected the TR" in caplog.text


@pytest.mark.parametrize(
    ("bad", "echo", "expected"),
    [
        ({"NUM_CHAN": "2"}, 3, "expected --echo from 1 to 2"),
        ({"NUM_CHAN": "2"}, "combine", "expected the command ECHO_TIMES"),
        ({"NUM_CHAN": "2", "ECHO_TIMES": "30 12"}, "combine", "expected ECHO_TIMES above 0 that increase"),
        ({"TR": "-2"}, None, "expected a TR above 0 s"),
        ({"TR": "1333333"}, None, "expected a TR above 0 s"),
        ({"TR": "soon"}, None, "expected TR with numbers"),
        ({"OBLIQUE_XFORM": "", "XYZAXES": "L-R P-A"}, None, "expected XYZAXES"),
    ],
)
def test_a_run_that_cannot_be_taken_is_passed_over_and_the_next_on_its_connection_is_heard(
    bad: dict[str, Any],
    echo: int | str | None,
    expected: str,
    make_scan: type[Scan],
    caplog: pytest.LogCaptureFixture,
) -> None:
    scan = make_scan()
    good: dict[str, Any] = {"NUM_CHAN": "3", "ECHO_TIMES": "12 30.5 48", "TR": "1333.333"} if echo else {}
    voxels, n_good = x_fastest(scan.voxels(0)), int(good.get("NUM_CHAN", 1))

    async def check() -> None:
        async with listening(echo=echo) as (heard, address):
            data = await asyncio.to_thread(begin, address, commands(scan.start.affine, **bad))
            data.sendall(voxels * 3 * int(bad.get("NUM_CHAN", 1)) + MAGIC.ljust(432, b"\0"))
            tell(data, commands(scan.start.affine, **good))
            data.sendall(voxels * n_good)
            assert isinstance(await heard.get(), RunOver)
            taken = await heard.get()
            assert (taken.index, taken.tr_s) == (0, pytest.approx(4 / 3))
            data.close()

    asyncio.run(check())
    assert f"passed over up to its end: {expected}" in caplog.text
    assert "closed the sender's connection" not in caplog.text
    assert ("the sender's TR is taken as 1333.33 ms" in caplog.text) == bool(echo)


def test_connections_to_the_control_port_are_limited() -> None:
    async def check() -> None:
        async with listening() as (_, address):
            port = control_port(address)
            silent = [await asyncio.to_thread(connect, port) for _ in range(MOST_CONTROL_CONNECTIONS + 1)]
            assert await asyncio.to_thread(silent.pop().recv, 1) == b""
            for each in silent:
                each.close()

    asyncio.run(check())


@given(extra=st.lists(lines, max_size=6), base=st.booleans())
def test_any_commands_are_a_header_or_refused_and_nothing_else(extra: list[str], base: bool) -> None:
    text = "\n".join([*(commands(np.eye(4)) if base else []), *extra])
    with contextlib.suppress(WireError):
        header = parse(text.encode())
        assert all(1 <= edge <= 1_024 for edge in header.shape)
        assert header.image_bytes * header.images <= wire.MAX_VOLUME_BYTES
        if np.prod(header.shape) <= 1_000:
            voxels, _ = to_ras(header.volume([bytes(header.image_bytes)] * header.images), header.affine)
            assert voxels.size == np.prod(header.shape)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused_as_commands_and_as_a_data_port(data: bytes) -> None:
    with pytest.raises(WireError):
        parse(data)
    with contextlib.suppress(WireError):
        assert 1_024 <= data_port(b"tcp:localhost:" + data) <= 65_535


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "::1"])
def test_the_data_port_is_on_this_machine(host: str) -> None:
    assert data_port(f"tcp:{host}:7960".encode()) == 7_960


@pytest.mark.parametrize("host", ["localhost", "10.0.0.5", "console", "mri.example.org"])
def test_where_others_may_send_the_name_of_the_machine_does_not_matter(host: str) -> None:
    """A sender names this machine by the name that it knows."""
    assert data_port(f"tcp:{host}:7960".encode(), is_local=False) == 7_960


def test_machines_that_are_not_named_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    """This machine's own other address stands for another machine."""
    here = own_address()

    async def heard_from(allowed: Hosts, is_heard: bool) -> None:
        scanner = AfniScanner(f"tcp://{here}:0", allowed)
        address = await scanner.start()
        try:
            port = free_port()
            with await asyncio.to_thread(socket.create_connection, (here, control_port(address))) as control:
                control.sendall(f"tcp:{here}:{port}\0".encode())
                with contextlib.suppress(ConnectionError):
                    assert await asyncio.to_thread(control.recv, 1) == b""
            with contextlib.nullcontext() if is_heard else pytest.raises(ConnectionRefusedError):
                (await asyncio.to_thread(socket.create_connection, (here, port))).close()
        finally:
            await scanner.stop()

    asyncio.run(heard_from(Hosts([here]), is_heard=True))
    assert not caplog.records
    asyncio.run(heard_from(Hosts(["192.0.2.1"]), is_heard=False))
    assert f"refused a connection from {here}" in caplog.text


@pytest.mark.parametrize(
    ("named", "address", "is_in"),
    [
        ([], "127.0.0.1", True),
        ([], "::1", True),
        ([], "10.0.0.5", False),
        (["10.0.0.5"], "10.0.0.5", True),
        (["10.0.0.5"], "::ffff:10.0.0.5", True),
        (["10.0.0.5"], "10.0.0.6", False),
        (["192.0.2.1", "10.0.0.0/24"], "10.0.0.6", True),
        (["10.0.0.0/24"], "10.0.1.6", False),
        (["fe80::/64"], "fe80::1%eth0", True),
    ],
)
def test_this_machine_and_those_that_are_named_may_connect(
    named: list[str], address: str, is_in: bool
) -> None:
    assert (address in Hosts(named)) is is_in


@pytest.mark.parametrize("named", ["console", "10.0.0", "10.0.0.5/24", ""])
def test_machines_are_named_by_addresses(named: str) -> None:
    with pytest.raises(ServeError, match="--allow"):
        Hosts([named])


@pytest.mark.parametrize("host", ["", "0.0.0.0", "scanner", "192.168.1.7", "localhost.example.org", "::"])
def test_a_sender_that_names_another_machine_is_refused(host: str) -> None:
    with pytest.raises(WireError, match="SSH tunnel"):
        data_port(f"tcp:{host}:7960".encode())
