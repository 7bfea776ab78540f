"""Ports of this project's own protocols: keys without a word from the user, or a socket of this user's."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from realtime import cli, wire
from realtime.errors import ServeError
from realtime.network.address import check_path
from realtime.network.endpoint import Endpoint
from realtime.network.key_files import (
    load_client_keys,
    load_server_keys,
    make_keys,
    own_client_keys,
    own_folder,
    own_server_keys,
)

from ...keyed import own_keys, without_keys
from .conftest import Client, Scan, Served
from .zmtp import old_message, post

# Keys that nobody asked for


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's configuration folder that has no keys yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    return tmp_path / "configuration"


def replay(nsd: Path, address: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sim", "replay", "--nsd", str(nsd), "--speed", "1000"]
    command += ["--connect", address, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_serve_makes_keys_at_first_use_and_the_simulated_scanner_finds_them(
    serve: Callable[..., Served], configuration: Path, tiny_nsd: Path
) -> None:
    served = serve()
    keys = configuration / "realtime-dynadiff" / "keys"
    assert own_folder() == keys
    parts = [keys, *keys.rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in parts if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in parts if path.is_file()} == {0o600}
    done = replay(tiny_nsd, served.address)
    assert done.returncode == 0, done.stderr
    assert "run complete: 225 volumes acknowledged" in done.stderr
    before = own_server_keys()
    assert served.interrupt() == 0
    serve()
    assert own_server_keys() == before


def test_the_first_runtimes_of_a_user_agree_on_the_keys(configuration: Path) -> None:
    command = "from realtime.network.key_files import own_server_keys; print(own_server_keys().own.public)"
    runtimes = [
        subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = [each.communicate()[0] for each in runtimes]
    assert {each.returncode for each in runtimes} == {0}
    assert set(said) == {f"{own_server_keys().own.public!r}\n"}
    assert [path.name for path in own_folder().parent.iterdir()] == ["keys"]


def test_a_configuration_folder_that_cannot_be_written_is_one_line(
    configuration: Path, capsys: pytest.CaptureFixture[str], tiny_bundle: Path
) -> None:
    configuration.write_text("a file in its place")
    options = ["--headless", "--bundle", str(tiny_bundle), "--source", "tcp://127.0.0.1:0"]
    assert cli.main(["serve", *options]) == 2
    said = capsys.readouterr().err
    assert f"cannot make keys in {own_folder()}" in said
    assert "give the runtime's folder as --keys" in said


def test_without_a_runtime_there_are_no_keys_of_a_scanner(configuration: Path) -> None:
    assert own_client_keys("scanner") is None
    own_server_keys()
    scanner = own_client_keys("scanner")
    assert scanner
    assert scanner.server == own_server_keys().own.public


def test_a_port_on_loopback_answers_nobody_without_keys(
    serve: Callable[..., Served],
    connect: Callable[..., Client],
    make_scan: type[Scan],
) -> None:
    served = serve()
    scan = make_scan(n_volumes=3)
    strangers = [connect(served.address, without_keys), connect(served.address, own_keys("subscriber"))]
    for stranger in strangers:
        stranger.send_frames(wire.encode(scan.start), b"")
    host, port = served.address.removeprefix("tcp://").split(":")
    start = old_message(wire.encode(scan.start), b"")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(start)
        web = post(host, int(port), wire.encode(scan.start), b"")
        connect(served.address).send_run(make_scan(run_id="known", n_volumes=3))
        web.close()
    assert not any(stranger.has_reply() for stranger in strangers)
    assert served.interrupt() == 0
    assert [path.name for path in served.out.iterdir() if path.is_dir()] == ["known"]


def test_keys_that_nobody_named_open_no_port_to_other_machines() -> None:
    with zmq.Context() as context, pytest.raises(ServeError, match="expected a loopback address"):
        Endpoint(context, "tcp://0.0.0.0:0", own_server_keys(), "scanners")


def test_a_tcp_port_needs_keys() -> None:
    with zmq.Context() as context, pytest.raises(ServeError, match="expected keys for tcp://127.0.0.1:0"):
        Endpoint(context, "tcp://127.0.0.1:0", None, "scanners")


# Rights


def test_every_peer_has_a_key_and_a_right_of_its_own(tmp_path: Path) -> None:
    make_keys(tmp_path, ["screen"])
    allowed = load_server_keys(tmp_path / "runtime").allowed

    def public(*names: str) -> set[bytes]:
        return {load_client_keys(tmp_path / name).own.public for name in names}

    assert allowed == {
        "scanners": public("scanner"),
        "markers": public("presentation"),
        "subscribers": public("subscriber", "screen"),
        "operators": public("operator"),
    }
    assert sum(len(keys) for keys in allowed.values()) == 5


def older_folder(folder: Path, *subscribers: str) -> None:
    """Keys as they were made when there were scanners and subscribers only."""
    make_keys(folder, [name for name in subscribers if name != "presentation"])
    runtime = folder / "runtime"
    if "presentation" in subscribers:
        (runtime / "markers" / "presentation.key").rename(runtime / "subscribers" / "presentation.key")
    for right, name in (("markers", "presentation"), ("operators", "operator")):
        if name not in subscribers:
            (runtime / right / f"{name}.key").unlink()
            for file in (folder / name).iterdir():
                file.unlink()
            (folder / name).rmdir()
        (runtime / right).rmdir()


def test_an_older_folder_of_keys_is_read_and_completed(tmp_path: Path) -> None:
    older_folder(tmp_path, "screen")
    before = load_server_keys(tmp_path / "runtime")
    assert before.allowed["markers"] == before.allowed["operators"] == frozenset()
    assert make_keys(tmp_path) == [tmp_path / "presentation", tmp_path / "operator"]
    after = load_server_keys(tmp_path / "runtime")
    assert after.own == before.own
    assert after.allowed["scanners"] == before.allowed["scanners"]
    assert after.allowed["subscribers"] == before.allowed["subscribers"]
    assert len(after.allowed["markers"]) == len(after.allowed["operators"]) == 1


def test_a_subscriber_of_an_older_folder_keeps_its_name(tmp_path: Path) -> None:
    older_folder(tmp_path, "presentation")
    before = load_server_keys(tmp_path / "runtime")
    assert make_keys(tmp_path) == [tmp_path / "operator"]
    after = load_server_keys(tmp_path / "runtime")
    assert after.allowed["subscribers"] == before.allowed["subscribers"]
    assert after.allowed["markers"] == frozenset()


# A socket in a folder of the user's


@pytest.fixture
def private(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    return folder


def test_a_run_goes_over_a_socket_of_this_users_without_keys(
    serve: Callable[..., Served], private: Path, tiny_nsd: Path, configuration: Path
) -> None:
    source, published = f"ipc://{private / 'source'}", f"ipc://{private / 'frames'}"
    served = serve("--publish", published, source=source)
    assert served.address == source
    assert f"results published at {published}" in served.said
    done = replay(tiny_nsd, source)
    assert done.returncode == 0, done.stderr
    assert "run complete: 225 volumes acknowledged" in done.stderr
    assert served.interrupt() == 0
    assert not configuration.exists()


def test_the_socket_of_a_killed_runtime_is_taken_over(
    serve: Callable[..., Served], connect: Callable[..., Client], private: Path, make_scan: type[Scan]
) -> None:
    source = f"ipc://{private / 'source'}"
    serve(source=source).kill()
    assert (private / "source").is_socket()
    served = serve(source=source)
    connect(source).send_run(make_scan(n_volumes=3))
    assert served.interrupt() == 0


def test_a_socket_in_use_is_refused(serve: Callable[..., Served], private: Path) -> None:
    serve(source=f"ipc://{private / 'source'}")
    with pytest.raises(ServeError, match=r"ipc://.*source is in use"):
        check_path(f"ipc://{private / 'source'}")


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_folder_that_others_can_enter_is_refused(private: Path, mode: int) -> None:
    private.chmod(mode)
    with pytest.raises(ServeError, match=f"nobody else can enter, found .*; run chmod 700 {private}"):
        check_path(f"ipc://{private / 'source'}")


def test_a_linked_folder_is_refused(private: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(private)
    with pytest.raises(ServeError, match="found lrwx"):
        check_path(f"ipc://{tmp_path / 'link' / 'source'}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused(private: Path) -> None:
    os.chown(private, 65_534, 65_534)
    with pytest.raises(ServeError, match="of user 65534"):
        check_path(f"ipc://{private / 'source'}")


def test_what_is_no_socket_is_not_removed(private: Path) -> None:
    (private / "file").write_text("mine")
    (private / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        with pytest.raises(ServeError, match="found something else"):
            check_path(f"ipc://{private / name}")
    assert (private / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "address", ["ipc://relative", "ipc://@abstract", "ipc://*", "ipc:///", "ipc:/x", "ipc://"]
)
def test_what_is_no_path_is_refused(address: str) -> None:
    with pytest.raises(ServeError, match="expected an address like ipc:///path/to/socket"):
        check_path(address)


def test_a_path_that_is_too_long_is_one_line(
    private: Path, capsys: pytest.CaptureFixture[str], tiny_bundle: Path
) -> None:
    address = f"ipc://{private / ('x' * 120)}"
    assert cli.main(["serve", "--headless", "--bundle", str(tiny_bundle), "--source", address]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"realtime: cannot listen at {address}: ")
    assert said.count("\n") == 1
