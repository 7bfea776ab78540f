"""A scanner side that implements Pyneal's protocol, without our code, against a served runtime."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from realtime import wire
from realtime.errors import WireError
from realtime.record.reader import read_recorded
from realtime.sources.pyneal import Header, PynealScanner, greeting, parse, taken
from realtime.sources.run_boundaries import Scan as RunScan

from .conftest import DemoScan, Scan, Served, closed
from .test_folder import wait_until
from .zmtp import old_message, post

PATIENCE_MS = 60_000
RUN_ID = "sub-01_task-realtime"


class Pyneal:
    """Greets, then sends a volume and waits for the line that answers it."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.connect(address.removeprefix("pyneal+"))

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()

    def say(self, *frames: bytes) -> str:
        self._socket.send_multipart(frames)
        assert self._socket.poll(PATIENCE_MS), "the runtime did not answer"
        return self._socket.recv_string()

    def insist(self, greeting: bytes) -> None:
        """Greet until an answer comes; messages of a waiting connection are lost, so greet repeatedly."""
        while not self._socket.poll(200):
            self._socket.send(greeting)
        while self._socket.poll(200):
            self._socket.recv()

    def send(
        self, index: int, voxels: np.ndarray, affine: ArrayLike, tr: str = "1333.3333", **changes: Any
    ) -> str:
        return self.say(*self._volume(index, voxels, affine, tr, **changes))

    def leave(self, index: int, voxels: np.ndarray, affine: ArrayLike) -> None:
        """Send a volume without waiting for the answer."""
        self._socket.send_multipart(self._volume(index, voxels, affine, "1333.3333"))
        self._socket.close(linger=PATIENCE_MS)

    @staticmethod
    def _volume(
        index: int, voxels: np.ndarray, affine: ArrayLike, tr: str, **changes: Any
    ) -> tuple[bytes, bytes]:
        header = {
            "volIdx": index,
            "dtype": str(voxels.dtype),
            "shape": voxels.shape,
            "affine": json.dumps(np.asarray(affine).tolist()),
            "TR": tr,
        }
        return json.dumps(header | changes).encode(), np.ascontiguousarray(voxels).tobytes()


@pytest.fixture
def pyneal() -> Iterator[Callable[[str], Pyneal]]:
    clients: list[Pyneal] = []

    def connect(address: str) -> Pyneal:
        clients.append(Pyneal(address))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "uint16"])
def test_the_demos_run_gives_the_same_frames_as_over_our_own_messages(
    frames_over: Callable[..., dict[str, bytes]],
    demo_frames: dict[str, bytes],
    pyneal: Callable[[str], Pyneal],
    demo_scan: DemoScan,
    dtype: str,
) -> None:
    def connect(address: str) -> Callable[[int], None]:
        scanner, affine = pyneal(address), demo_scan.start.affine
        scanner.say(b"hello")

        def send(index: int) -> None:
            assert scanner.send(index, demo_scan.voxels(index).astype(dtype), affine).startswith("received")

        return send

    assert frames_over("pyneal+tcp://127.0.0.1:0", RUN_ID, connect) == demo_frames


@pytest.mark.parametrize(("dtype", "tr"), [("int64", "1.3333"), (">i2", "1333.3333")])
def test_runs_are_recorded_and_each_volume_is_answered_once_it_is(
    serve: Callable[..., Served],
    pyneal: Callable[[str], Pyneal],
    make_scan: type[Scan],
    account_of: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
    dtype: str,
    tr: str,
) -> None:
    scan = make_scan(n_volumes=12, dtype=dtype)
    served = serve("--volumes", "12", source="pyneal+tcp://127.0.0.1:0")
    scanner = pyneal(served.address)
    assert scanner.say(b"hello from pynealScanner ") == "hello from pynealScanner "
    folders = [served.out / RUN_ID, served.out / f"{RUN_ID}_take-2"]
    for folder in folders:
        for index in range(12):
            reply = scanner.send(index, scan.voxels(index), scan.start.affine, tr)
            assert reply == f"received volIdx {index}"
            assert index in read_recorded(folder).received
    scanner.send(0, scan.voxels(5), scan.start.affine, tr)  # of a third: the runs before are over
    for folder in folders:
        assert account_of(closed(folder))["received"] == 12
        assert read_recorded(folder).info.state == "closed"
    assert served.interrupt() == 0


def test_a_run_that_cannot_be_decoded_stops_the_scanner_and_the_next_is_taken(
    serve: Callable[..., Served], pyneal: Callable[[str], Pyneal], make_scan: type[Scan]
) -> None:
    scan = make_scan(n_volumes=12)
    served = serve("--volumes", "12", source="pyneal+tcp://127.0.0.1:0")
    scanner = pyneal(served.address)
    voxels, affine = scan.voxels(0), scan.start.affine
    for said, reply in (
        ("got 2.0000 s", scanner.send(0, voxels, affine, tr="2000")),
        ("got (6, 6, 5)", scanner.send(0, voxels[..., :5], affine)),
        ("got volume 12", scanner.send(12, voxels, affine)),
        ("expected two frames", scanner.say(b"{}", b"", b"")),
        ("volIdx", scanner.say(b"{}", b"")),
        ("complex64", scanner.send(0, voxels, affine, dtype="complex64")),
        ("which float64 holds exactly", scanner.send(0, voxels.astype(np.int64) + 2**60, affine)),
        ("expected 432 bytes", scanner.say(json.dumps(header(affine)).encode(), b"short")),
    ):
        assert reply.startswith("STOP: ")
        assert said in reply
    assert scanner.send(1, voxels, affine) == "received volIdx 1"
    assert "Traceback" not in served.log()


def header(affine: ArrayLike) -> dict[str, Any]:
    return {
        "volIdx": 1,
        "dtype": "int16",
        "shape": [6, 6, 6],
        "affine": json.dumps(np.asarray(affine).tolist()),
        "TR": "1.3333",
    }


def test_a_scanner_continues_its_run_after_a_kill_of_the_runtime(
    serve: Callable[..., Served],
    pyneal: Callable[[str], Pyneal],
    make_scan: type[Scan],
    closed_account: Callable[[Path], dict[str, Any]],
) -> None:
    scan = make_scan(n_volumes=12)
    first = serve("--volumes", "12", source="pyneal+tcp://127.0.0.1:0")
    scanner = pyneal(first.address)
    for index in range(5):
        scanner.send(index, scan.voxels(index), scan.start.affine)
    first.kill()
    second = serve("--volumes", "12", source=first.address)
    for index in range(5, 12):
        assert scanner.send(index, scan.voxels(index), scan.start.affine) == f"received volIdx {index}"
    summary = closed_account(second.out / RUN_ID)
    assert (summary["received"], summary["missing"]) == (12, 0)
    assert second.interrupt() == 0


def test_a_second_scanner_is_served_once_the_first_disconnects(
    serve: Callable[..., Served], pyneal: Callable[[str], Pyneal], make_scan: type[Scan]
) -> None:
    scan = make_scan(n_volumes=12)
    served = serve("--volumes", "12", source="pyneal+tcp://127.0.0.1:0")
    first = pyneal(served.address)
    assert first.say(b"hello") == "hello"
    second = pyneal(served.address)
    wait_until(lambda: "a second connection waits" in served.log())
    for index in range(2):  # the first goes on undisturbed
        assert first.send(index, scan.voxels(index), scan.start.affine) == f"received volIdx {index}"
    first.leave(2, scan.voxels(2), scan.start.affine)
    second.insist(b"hello")
    for index in range(3, 5):
        assert second.send(index, scan.voxels(index), scan.start.affine) == f"received volIdx {index}"
    assert served.interrupt() == 0
    assert read_recorded(served.out / RUN_ID).received == {0, 1, 2, 3, 4}


def test_a_silent_connection_is_not_the_scanner(
    serve: Callable[..., Served], pyneal: Callable[[str], Pyneal], make_scan: type[Scan]
) -> None:
    """For example of a tunnel or a port scanner."""
    scan = make_scan(n_volumes=12)
    served = serve("--volumes", "12", source="pyneal+tcp://127.0.0.1:0")
    with socket.create_connection(("127.0.0.1", int(served.address.rpartition(":")[2]))):
        scanner = pyneal(served.address)
        assert scanner.say(b"hello") == "hello"
    for index in range(3):
        assert scanner.send(index, scan.voxels(index), scan.start.affine) == f"received volIdx {index}"
    assert "second connection" not in served.log()


def test_another_number_of_volumes_after_a_kill_begins_another_take(
    serve: Callable[..., Served], pyneal: Callable[[str], Pyneal], make_scan: type[Scan]
) -> None:
    scan = make_scan(n_volumes=12)
    first = serve("--volumes", "30", source="pyneal+tcp://127.0.0.1:0")
    scanner = pyneal(first.address)
    for index in range(5):
        scanner.send(index, scan.voxels(index), scan.start.affine)
    first.kill()
    second = serve("--volumes", "12", source=first.address)
    assert scanner.send(5, scan.voxels(5), scan.start.affine) == "received volIdx 5"
    assert read_recorded(closed(second.out / RUN_ID)).info.state == "closed"
    assert second.interrupt() == 0
    assert read_recorded(second.out / f"{RUN_ID}_take-2").received == {5}


# Peers that are no scanners, in this process


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[AsyncIterator[RunScan], str]]:
    scanner = PynealScanner("tcp://127.0.0.1:0")
    address = await scanner.start()
    try:
        async with asyncio.timeout(PATIENCE_MS / 1e3):
            yield scanner.scans(), address
    finally:
        await scanner.stop()


def send_run(scanner: Pyneal, scan: Scan, index: int) -> None:
    scanner.insist(b"hello")
    scanner._socket.send_multipart(scanner._volume(index, scan.voxels(index), scan.start.affine, "1333.3333"))


def test_neither_http_nor_zeromq_2_is_heard(pyneal: Callable[[str], Pyneal], make_scan: type[Scan]) -> None:
    """A web page can send the first; neither has a greeting that says what it is."""
    scan = make_scan()
    planted = Pyneal._volume(7, scan.voxels(7), scan.start.affine, "1333.3333")

    async def check() -> None:
        async with listening() as (scans, address):
            first = asyncio.ensure_future(anext(scans))
            port = int(address.rpartition(":")[2])
            web = post("127.0.0.1", port, *planted)
            with socket.create_connection(("127.0.0.1", port)) as raw:
                raw.sendall(old_message(*planted))
                with contextlib.suppress(ConnectionResetError):
                    while await asyncio.to_thread(raw.recv, 1_024):  # until it is closed
                        pass
                await asyncio.to_thread(send_run, pyneal(address), scan, 3)
                assert (await first).index == 3
            web.close()

    asyncio.run(check())


def test_a_peer_that_says_nothing_gives_way_to_the_next(
    pyneal: Callable[[str], Pyneal], make_scan: type[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realtime.sources.pyneal.SILENT_TURN_S", 0.1)
    scan = make_scan()

    async def check() -> None:
        async with listening() as (scans, address):
            first = asyncio.ensure_future(anext(scans))
            with zmq.Context() as context, context.socket(zmq.PAIR) as silent:
                silent.linger, silent.reconnect_ivl = 0, -1
                silent.connect(address.removeprefix("pyneal+"))
                silent.send(b"hello")
                assert await asyncio.to_thread(silent.poll, PATIENCE_MS)  # it is served
                await asyncio.to_thread(send_run, pyneal(address), scan, 3)
                assert (await first).index == 3

    asyncio.run(check())


AFFINE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("tr", "tr_s"), [("1333.0", 1.333), ("1.333", 1.333), (1.5, 1.5), (1500, 1.5), ("60", 60.0)]
)
def test_a_tr_is_in_seconds_or_milliseconds(tr: object, tr_s: float) -> None:
    assert parse(memoryview(json.dumps(header(AFFINE) | {"TR": tr}).encode()))[2] == pytest.approx(tr_s)


@pytest.mark.parametrize(
    "affine", [np.zeros((4, 4)), np.diag([1.0, 1, 0, 1]), np.ones((4, 4)), np.diag([1e300, 1, 1, 1])]
)
def test_an_affine_that_cannot_be_inverted_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(WireError, match="expected an affine that can be inverted"):
        parse(memoryview(json.dumps(header(affine)).encode()))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"])
def test_voxels_of_any_numbers_are_recorded_without_a_loss(dtype: str, order: str) -> None:
    """The extremes too; of integers of 8 bytes, those that float64 holds."""
    sent = np.dtype(order + dtype)
    voxels = np.arange(216).reshape(6, 6, 6).astype(sent)
    if sent.kind in "iu":
        limits = np.iinfo(sent)
        voxels[0, 0, 0], voxels[5, 5, 5] = max(limits.min, -(2**53)), min(limits.max, 2**53)
    for name in (sent.str, sent.name if order == "<" else sent.str):
        said = msgspec.convert(header(AFFINE) | {"dtype": name}, Header)
        recorded, payload = taken(said, memoryview(voxels.tobytes()))
        assert recorded in wire.DTYPES
        read = np.frombuffer(payload, dtype=np.dtype(recorded).newbyteorder("<")).reshape(6, 6, 6)
        assert np.array_equal(read.astype(sent), voxels)


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**63 - 1])
def test_integers_that_would_be_changed_are_refused(value: int) -> None:
    voxels = np.full((6, 6, 6), value)
    with pytest.raises(WireError, match="send float64"):
        taken(msgspec.convert(header(AFFINE) | {"dtype": "int64"}, Header), memoryview(voxels.tobytes()))


@given(dtype=st.one_of(st.text(max_size=16), st.text("<>=|biufcOSV0123456789,()", max_size=16)))
def test_any_dtype_is_recorded_or_refused_and_nothing_else(dtype: str) -> None:
    said = msgspec.convert(header(AFFINE) | {"dtype": dtype}, Header)
    with contextlib.suppress(WireError):
        assert taken(said, memoryview(bytes(432)))[0] in wire.DTYPES


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=5), max_leaves=20)


@given(changes=st.dictionaries(st.sampled_from(sorted(header(AFFINE))), values))
def test_a_header_with_any_values_is_valid_or_refused_and_nothing_else(changes: dict[str, Any]) -> None:
    frame = memoryview(json.dumps(header(AFFINE) | changes).encode())
    with contextlib.suppress(WireError):
        said, affine, tr_s = parse(frame)
        assert 0 <= said.volIdx <= 100_000
        assert all(1 <= edge <= 1_024 for edge in said.shape)
        assert [len(row) for row in affine] == [4, 4, 4, 4]
        assert isinstance(tr_s, float)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_header_or_refused_and_nothing_else(data: bytes) -> None:
    for text in (data, b'{"volIdx": 0, "affine": "' + data, b"[" * 5_000 + data, b"\x00" * 20_000):
        with pytest.raises(WireError):
            parse(memoryview(text))
    try:
        assert greeting(memoryview(data)).encode() == data
    except WireError:
        with pytest.raises(UnicodeDecodeError):
            data.decode()
    with pytest.raises(WireError):
        greeting(memoryview(b"x" * 1_025))
