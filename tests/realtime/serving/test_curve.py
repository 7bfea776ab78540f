"""Authentication of ZeroMQ ports: keys on disk, and peers with and without keys on real sockets."""

from __future__ import annotations

import asyncio
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils.monitor import recv_monitor_message

from realtime import cli, wire
from realtime.errors import ServeError
from realtime.network.address import check_address
from realtime.network.curve import Guard
from realtime.network.key_files import load_client_keys, load_server_keys, make_keys
from realtime.sources.zeromq import ZeroMqSource

from .conftest import Client, Scan, Served

Connect = Callable[..., zmq.Socket[bytes]]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "keys"
    make_keys(folder, ["screen"])
    return folder


@pytest.fixture
def dealer() -> Iterator[Connect]:
    """``dealer(address, prepare)``: a socket on which ``prepare`` is called before it connects."""
    context = zmq.Context()

    def connect(address: str, prepare: Callable[[zmq.Socket[bytes]], None]) -> zmq.Socket[bytes]:
        dealing = context.socket(zmq.DEALER)
        dealing.linger = 0
        prepare(dealing)
        dealing.connect(address)
        return dealing

    yield connect
    context.destroy(linger=0)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Keys on the disk


def test_only_the_owner_can_read_the_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "keys"
    assert cli.main(["keys", str(folder), "--subscriber", "screen"]) == 0
    said = capsys.readouterr().out
    assert f"realtime serve --keys {folder / 'runtime'}" in said
    assert f"python -m sim replay --keys {folder / 'scanner'}" in said
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "runtime/server.key", "runtime/server.key_secret",
        "runtime/scanners/scanner.key", "runtime/markers/presentation.key",
        "runtime/operators/operator.key", "runtime/subscribers/subscriber.key",
        "runtime/subscribers/screen.key",
        "scanner/client.key_secret", "scanner/server.key",
        "presentation/client.key_secret", "presentation/server.key",
        "operator/client.key_secret", "operator/server.key",
        "subscriber/client.key_secret", "subscriber/server.key",
        "screen/client.key_secret", "screen/server.key",
    }  # fmt: skip
    assert {mode(folder / name) for name in files} == {0o600}
    assert {mode(path) for path in (folder, *folder.rglob("*")) if path.is_dir()} == {0o700}
    for path in (folder / name for name in files):
        assert ("secret-key" in path.read_text()) == (path.suffix == ".key_secret")


def test_existing_keys_stay_when_a_subscriber_is_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_keys(tmp_path / "keys")
    (tmp_path / "keys" / "scanner").rename(tmp_path / "moved to the scanner")
    before = load_server_keys(tmp_path / "keys" / "runtime")
    assert make_keys(tmp_path / "keys", ["screen"]) == [tmp_path / "keys" / "screen"]
    after = load_server_keys(tmp_path / "keys" / "runtime")
    assert after.own == before.own
    assert after.allowed["scanners"] == before.allowed["scanners"]
    scanner = load_client_keys(tmp_path / "moved to the scanner")
    assert after.allowed["scanners"] == {scanner.own.public}
    assert scanner.server == after.own.public
    assert after.allowed["subscribers"] == {
        load_client_keys(tmp_path / "keys" / name).own.public for name in ("screen", "subscriber")
    }
    assert cli.main(["keys", str(tmp_path / "keys")]) == 0
    assert "none was made" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["", "scanner", "presentation", "runtime", "../out", "a/b", ".hidden", "x" * 65, "a\n"]
)
def test_a_subscribers_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ServeError, match="expected a subscriber's name"):
        make_keys(tmp_path / "keys", [name])
    assert list(tmp_path.iterdir()) == []


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    make_keys(tmp_path)
    (tmp_path / "runtime" / "server.key_secret").chmod(0o644)
    with pytest.raises(ServeError, match="found mode 644; run chmod 600"):
        load_server_keys(tmp_path / "runtime")


def test_a_public_key_in_place_of_the_secret_is_refused(tmp_path: Path) -> None:
    make_keys(tmp_path)
    public = tmp_path / "runtime" / "server.key"
    public.replace(tmp_path / "runtime" / "server.key_secret")
    with pytest.raises(ServeError, match="expected a secret key .* found only a public one"):
        load_server_keys(tmp_path / "runtime")


@given(damaged=st.binary(max_size=120))
def test_an_invalid_key_is_one_line(tmp_path_factory: pytest.TempPathFactory, damaged: bytes) -> None:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder)
    (folder / "scanner" / "server.key").write_bytes(b'public-key = "' + damaged + b'"')
    with pytest.raises(ServeError, match=r"\A[^\n]*\Z"):
        load_client_keys(folder / "scanner")


@pytest.mark.parametrize("source", ["pyneal+tcp://127.0.0.1:0", "afni+tcp://127.0.0.1:0", "folder:."])
def test_keys_without_a_zeromq_port_are_refused(
    keys: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    """An operator who gives keys expects every port to be protected."""
    given = ["--keys", str(keys / "runtime"), "--source", source, "--volumes", "3"]
    assert cli.main(["serve", "--headless", "--bundle", str(keys), *given]) == 2
    assert f"expected no --keys with {source} and without --publish" in capsys.readouterr().err


def test_missing_keys_say_how_to_make_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--keys", str(tmp_path), "--headless", "--source", "tcp://127.0.0.1:0"]) == 2
    assert "make it with `realtime keys`" in capsys.readouterr().err


def test_a_secret_key_is_not_printed(keys: Path) -> None:
    pair = load_client_keys(keys / "scanner").own
    assert pair.secret.decode() not in repr(pair)
    assert pair.secret.decode() not in repr(load_client_keys(keys / "scanner"))


# Peers


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:5555", "tcp://192.168.1.7:5555", "tcp://[::]:5555"])
def test_keys_allow_addresses_on_the_network(address: str) -> None:
    assert check_address(address, is_guarded=True)[1] == 5555


def nothing(socket: zmq.Socket[bytes]) -> None:
    """No security at all."""


def password(socket: zmq.Socket[bytes]) -> None:
    socket.plain_username, socket.plain_password = b"admin", b"admin"


def unlisted_key(keys: Path) -> Callable[[zmq.Socket[bytes]], None]:
    """Knows the runtime's public key and uses an unlisted key pair."""

    def prepare(socket: zmq.Socket[bytes]) -> None:
        socket.curve_serverkey = load_client_keys(keys / "scanner").server
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()

    return prepare


def wrong_server(keys: Path) -> Callable[[zmq.Socket[bytes]], None]:
    """A listed scanner that expects another runtime's key."""

    def prepare(socket: zmq.Socket[bytes]) -> None:
        own = load_client_keys(keys / "scanner").own
        socket.curve_serverkey = zmq.curve_keypair()[0]
        socket.curve_publickey, socket.curve_secretkey = own.public, own.secret

    return prepare


def stolen_public_key(keys: Path) -> Callable[[zmq.Socket[bytes]], None]:
    """Knows both public keys, but not the scanner's secret key."""

    def prepare(socket: zmq.Socket[bytes]) -> None:
        client = load_client_keys(keys / "scanner")
        socket.curve_serverkey = client.server
        socket.curve_publickey, socket.curve_secretkey = client.own.public, zmq.curve_keypair()[1]

    return prepare


def test_only_the_scanner_gets_an_answer_and_the_runtime_keeps_running(
    serve: Callable[..., Served],
    connect: Callable[..., Client],
    keys: Path,
    dealer: Connect,
    make_scan: type[Scan],
    account_of: Callable[[Path], dict[str, Any]],
) -> None:
    served = serve("--keys", str(keys / "runtime"), source="tcp://0.0.0.0:0")
    address = served.address.replace("0.0.0.0", "127.0.0.1")
    scan = make_scan()
    intruders = [
        dealer(address, prepare)
        for prepare in (
            nothing, password, unlisted_key(keys), wrong_server(keys), stolen_public_key(keys),
            load_client_keys(keys / "screen").use,  # may read results, not send volumes
        )
    ]  # fmt: skip
    host, port = address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(100))
        for intruder in intruders:
            intruder.send_multipart([b"\xc1", b""])  # which a runtime refuses, where it listens
            intruder.send_multipart([wire.encode(scan.start), b""])
        connect(address, load_client_keys(keys / "scanner").use).send_run(scan)
        for intruder in intruders:
            assert not intruder.poll(0)
    assert account_of(served.closed(scan))["received"] == scan.n_volumes
    assert served.interrupt() == 0
    log = served.log()
    assert "refused" not in log
    assert log.count("turned away a peer") == 2  # the unlisted key and the subscriber's, each once


def test_the_simulated_scanner_replays_a_run_with_its_keys(
    serve: Callable[..., Served], keys: Path, tiny_nsd: Path
) -> None:
    served = serve("--keys", str(keys / "runtime"))
    command = [sys.executable, "-m", "sim", "replay", "--nsd", str(tiny_nsd), "--speed", "1000"]
    command += ["--connect", served.address, "--keys", str(keys / "scanner")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "run complete: 225 volumes acknowledged" in done.stderr
    assert served.interrupt() == 0


def test_the_simulated_scanner_says_what_is_wrong_with_its_keys(tmp_path: Path, tiny_nsd: Path) -> None:
    command = [sys.executable, "-m", "sim", "replay", "--nsd", str(tiny_nsd), "--keys", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("sim: expected a ZeroMQ key")


def test_a_guard_that_is_not_running_admits_nobody(keys: Path, dealer: Connect) -> None:
    """A protected socket admits nobody if its guard fails."""

    async def check() -> None:
        context = zmq.asyncio.Context()
        router = context.socket(zmq.ROUTER)
        Guard(context, load_server_keys(keys / "runtime"), "scanners").protect(router)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        sender = dealer(f"tcp://127.0.0.1:{port}", load_client_keys(keys / "scanner").use)
        monitor = sender.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        sender.send_multipart([b"hello", b""])
        event = await asyncio.to_thread(recv_monitor_message, monitor)
        assert event["event"] == zmq.EVENT_DISCONNECTED
        assert not await router.poll(0)
        sender.disable_monitor()
        router.close(linger=0)
        context.term()

    asyncio.run(check())


def test_a_source_can_be_started_again_on_its_port_with_the_same_keys(
    keys: Path, dealer: Connect, make_scan: type[Scan]
) -> None:
    scan = make_scan()

    async def receive(source: ZeroMqSource) -> str:
        address = await source.start()
        sender = dealer(address, load_client_keys(keys / "scanner").use)
        sender.send_multipart([wire.encode(scan.start), b""])
        assert (await source.receive()).message == scan.start
        await source.stop()
        return address

    server = load_server_keys(keys / "runtime")
    address = asyncio.run(receive(ZeroMqSource("tcp://127.0.0.1:0", server)))
    assert asyncio.run(receive(ZeroMqSource(address, server))) == address
