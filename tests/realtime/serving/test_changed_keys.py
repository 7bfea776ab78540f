"""Folders of keys that change while the runtime listens, and folders that nobody should trust."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from realtime import wire
from realtime.errors import ServeError
from realtime.network import curve
from realtime.network.key_files import load_client_keys, load_server_keys, make_keys
from realtime.network.publish import Publisher
from realtime.sources.zeromq import ZeroMqSource

from .conftest import Client, Scan
from .test_publish import frame, status

# Changes


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of keys that is read again at every look."""
    monkeypatch.setattr(curve, "REREAD_S", 0.0)
    make_keys(tmp_path / "keys", ["screen", "other"])
    return tmp_path / "keys"


async def reply_of(client: Client) -> wire.ToScanner:
    return await asyncio.to_thread(client.reply)


def test_a_removed_scanner_is_refused_and_an_added_one_admitted(
    keys: Path, connect: Callable[..., Client], make_scan: type[Scan]
) -> None:
    scan = make_scan()

    async def check() -> None:
        source = ZeroMqSource("tcp://127.0.0.1:0", load_server_keys(keys / "runtime"))
        address = await source.start()
        try:
            removed = connect(address, load_client_keys(keys / "scanner").use)
            removed.send_frames(wire.encode(scan.start), b"")
            received = await source.receive()
            assert received.message == scan.start
            await received.reply(wire.RunAccepted(run_id=scan.run_id, held=[]))
            assert isinstance(await reply_of(removed), wire.RunAccepted)

            markers, scanners = keys / "runtime" / "markers", keys / "runtime" / "scanners"
            (scanners / "scanner.key").unlink()
            removed.send_frames(wire.encode(scan.start), b"")
            (markers / "presentation.key").rename(scanners / "presentation.key")
            added = connect(address, load_client_keys(keys / "presentation").use)
            added.send_frames(wire.encode(scan.end()), b"")
            received = await source.receive()
            assert received.message == scan.end()
            assert received.peer.key == load_client_keys(keys / "presentation").own.public.decode()
            refused = await reply_of(removed)
            assert isinstance(refused, wire.Refused)
            assert refused.code == "key"
        finally:
            await source.stop()

    asyncio.run(check())


@pytest.fixture
def subscribe() -> Iterator[Callable[..., zmq.Socket[bytes]]]:
    context = zmq.Context()

    def connect(address: str, folder: Path) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.SUB)
        socket.subscribe("")
        load_client_keys(folder).use(socket)
        socket.connect(address)
        return socket

    yield connect
    context.destroy(linger=0)


def test_a_removed_subscriber_gets_nothing_more(
    keys: Path, subscribe: Callable[..., zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def publish_until_heard(publisher: Publisher, socket: zmq.Socket[bytes]) -> None:
        while not socket.poll(0):
            publisher.take(frame(0))
            await asyncio.sleep(0.01)
        while socket.poll(0):
            socket.recv_multipart()

    async def check() -> None:
        publisher = Publisher("tcp://127.0.0.1:0", load_server_keys(keys / "runtime"))
        address = publisher.start()
        try:
            publisher.take(status("warming"))
            removed, kept = subscribe(address, keys / "screen"), subscribe(address, keys / "other")
            await publish_until_heard(publisher, removed)
            await publish_until_heard(publisher, kept)
            (keys / "runtime" / "subscribers" / "screen.key").unlink()
            closed = removed.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            assert await asyncio.to_thread(closed.poll, 60_000), "it was not turned out"
            while removed.poll(0):
                removed.recv_multipart()
            await publish_until_heard(publisher, kept)
            assert not removed.poll(0)
        finally:
            publisher.stop()

    asyncio.run(check())


def test_a_damaged_key_keeps_its_owner_out_and_nobody_else(keys: Path) -> None:
    scanners = keys / "runtime" / "scanners"
    allowed = curve._Allowed(scanners, frozenset())
    scanner = load_client_keys(keys / "scanner").own.public
    (scanners / "new.key").write_text("half of a ke")
    assert allowed.keys() == {scanner}
    scanners.chmod(0o777)
    assert allowed.keys() == frozenset()
    scanners.chmod(0o700)
    assert allowed.keys() == {scanner}


def test_the_folder_is_read_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("realtime.network.curve.time.monotonic", lambda: now_s)
    make_keys(tmp_path)
    file = tmp_path / "runtime" / "scanners" / "scanner.key"
    allowed = curve._Allowed(file.parent, load_server_keys(tmp_path / "runtime").allowed["scanners"])
    file.unlink()
    now_s += 0.9
    assert allowed.keys() != frozenset()
    now_s += 0.1
    assert allowed.keys() == frozenset()


# Folders that nobody should trust


@pytest.mark.parametrize("part", ["runtime", "runtime/scanners", "runtime/subscribers"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, part: str, mode: int) -> None:
    make_keys(tmp_path)
    (tmp_path / part).chmod(mode)
    with pytest.raises(ServeError, match=f"found mode {mode:o}; run chmod go-w {tmp_path / part}"):
        load_server_keys(tmp_path / "runtime")


def test_a_scanners_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    make_keys(tmp_path)
    (tmp_path / "scanner").chmod(0o777)
    with pytest.raises(ServeError, match="run chmod go-w"):
        load_client_keys(tmp_path / "scanner")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused(tmp_path: Path) -> None:
    make_keys(tmp_path)
    os.chown(tmp_path / "runtime" / "scanners", 65_534, 65_534)
    with pytest.raises(ServeError, match="found user 65534, who can put keys there"):
        load_server_keys(tmp_path / "runtime")


@pytest.mark.parametrize("name", ["server.key_secret", "scanners/scanner.key", "scanners/another.key"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    make_keys(tmp_path)
    path = tmp_path / "runtime" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(ServeError, match="expected a key file .* found prw.*; delete it"):
        load_server_keys(tmp_path / "runtime")
    path.unlink()
    path.mkdir()
    with pytest.raises(ServeError, match="found drwx"):
        load_server_keys(tmp_path / "runtime")
    path.rmdir()
    path.symlink_to("/dev/zero")
    with pytest.raises(ServeError, match="found a link; put a copy of the file in its place"):
        load_server_keys(tmp_path / "runtime")


def test_a_huge_file_is_no_key(tmp_path: Path) -> None:
    make_keys(tmp_path)
    with (tmp_path / "scanner" / "server.key").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(ServeError, match="of 1099511627776 bytes"):
        load_client_keys(tmp_path / "scanner")
