from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import msgspec
import pytest

from realtime import wire
from realtime.errors import ServeError, WireError
from realtime.network.address import check_address
from realtime.network.key_files import own_client_keys, own_server_keys
from realtime.sources.zeromq import ZeroMqSource, parse

from .conftest import Client, Scan


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://127.0.0.1:5555", ("127.0.0.1", 5555)),
        ("tcp://localhost:0", ("127.0.0.1", 0)),
        ("tcp://127.3.2.1:1", ("127.3.2.1", 1)),
        ("tcp://[::1]:5555", ("::1", 5555)),
    ],
)
def test_loopback_addresses_are_accepted(address: str, expected: tuple[str, int]) -> None:
    assert check_address(address) == expected


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:5555", "tcp://192.168.1.7:5555", "tcp://[::]:5555"])
def test_addresses_that_others_can_reach_are_refused(address: str) -> None:
    with pytest.raises(ServeError, match="SSH tunnel.*realtime keys.*--keys"):
        check_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "5555",
        "tcp://127.0.0.1",
        "tcp://*:5555",
        "tcp://scanner:5555",
        "ipc:///tmp/x",
        "tcp://127.0.0.1:99999",
    ],
)
def test_other_forms_are_refused(address: str) -> None:
    with pytest.raises(ServeError):
        check_address(address)


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServeError, match=f"{address} is in use") as raised:
            asyncio.run(ZeroMqSource(address, own_server_keys()).start())
    assert "\n" not in str(raised.value)


def header(**changes: object) -> bytes:
    message = {"kind": "volume", "version": wire.WIRE_VERSION, "run_id": "r", "index": 0, "acquired_s": 1.0}
    return msgspec.msgpack.encode(message | changes)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([], "frames"),
        ([header()], "frames"),
        ([header(), b"", b""], "frames"),
        ([b"not msgpack \xff", b""], "header"),
        ([b"x" * (wire.MAX_HEADER_BYTES + 1), b""], "header"),
        ([header(version=2), b""], "version"),
        ([header(kind="pickle"), b""], "header"),
        ([header(index=-1), b""], "header"),
        ([header(run_id="../../etc"), b""], "header"),
        (
            [
                msgspec.msgpack.encode(
                    {"kind": "run_end", "version": 1, "run_id": "r", "reason": "complete"}
                ),
                b"!",
            ],
            "size",
        ),
        ([wire.encode(wire.Marker(run_id="r", onset_volume=1, name="a face")), b""], "picture"),
    ],
)
def test_invalid_messages_are_refused_with_a_code(frames: list[bytes], code: str) -> None:
    with pytest.raises(WireError) as raised:
        parse([memoryview(frame) for frame in frames])
    assert raised.value.code == code


def test_over_a_socket_invalid_messages_are_refused_and_valid_ones_received(
    connect: Callable[..., Client], make_scan: type[Scan]
) -> None:
    scan = make_scan()

    async def receive() -> list[str]:
        source = ZeroMqSource("tcp://127.0.0.1:0", own_server_keys())
        client = connect(await source.start())
        try:
            client.send_frames(b"\xc1", b"")
            client.send_frames(header(version=9), b"")
            client.send_frames(wire.encode(scan.start), b"")
            voxels = scan.voxels(4).tobytes()
            checked = wire.with_checksum(scan.volume(4), voxels)
            client.send_frames(wire.encode(scan.volume(4)), voxels)
            client.send_frames(wire.encode(checked), voxels)
            start = await source.receive()
            volume = await source.receive()
            assert start.message == scan.start
            assert volume.message == checked
            scanner = own_client_keys("scanner")
            assert scanner
            assert start.peer.key == volume.peer.key == scanner.own.public.decode()
            assert start.peer.connection == volume.peer.connection != b""
            assert bytes(volume.payload) == scan.voxels(4).tobytes()
            assert volume.received_s >= start.received_s
            await volume.reply(wire.Ack(run_id=scan.run_id, index=4))
            return [
                type(reply).__name__
                for reply in await asyncio.to_thread(lambda: [client.reply() for _ in range(4)])
            ]
        finally:
            await source.stop()

    assert asyncio.run(receive()) == ["Refused", "Refused", "Refused", "Ack"]
