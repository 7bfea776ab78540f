"""A runtime as a whole: what it holds is let go of, whatever fails on the way."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.decoding.trial import remember
from realtime.record.reader import read_recorded
from realtime.record.run_json import read_run_file

from .conftest import PATIENCE_S, Client, Scan, Served, is_alive, wait_until


def is_free(address: str) -> bool:
    parts = urlsplit(address)
    with socket.socket() as one:
        return one.connect_ex((parts.hostname, parts.port)) != 0


def addresses_of(served: Served) -> list[str]:
    return [served.address, served.found(r"results published at (\S+)"), served.found(r"page: (\S+)")]


def test_all_is_let_go_of_when_it_is_stopped_or_killed(serve: Callable[..., Served]) -> None:
    for stop in ("interrupt", "kill"):
        served = serve("--port", "0", "--publish", "tcp://127.0.0.1:0")
        children = served.children()
        assert children.keys() == {"record", "decode", "page"}
        addresses = addresses_of(served)
        assert [is_free(address) for address in addresses] == [False] * 3
        if stop == "interrupt":
            assert served.interrupt() == 0
        else:
            served.process.kill()  # only itself: the others learn that it is gone
        wait_until(lambda: not any(map(is_alive, children.values())), "the end of its processes")  # noqa: B023
        assert [is_free(address) for address in addresses] == [True] * 3


def test_a_process_that_cannot_start_takes_the_others_with_it(
    tiny_bundle: Path, tmp_path: Path, serve: Callable[..., Served]
) -> None:
    """Here the decoder, whose address is taken; the last line says why."""
    taken = serve("--publish", "tcp://127.0.0.1:0").found(r"results published at (\S+)")
    command = [sys.executable, "-m", "realtime", "serve", "--bundle", str(tiny_bundle), "--port", "0"]
    command += ["--source", "tcp://127.0.0.1:0", "--out", str(tmp_path / "other"), "--publish", taken]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S
    )  # ends with its children
    assert done.returncode == 2
    assert f"{taken} is in use" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_folder_of_runs_has_one_runtime(
    serve: Callable[..., Served], connect: Callable[..., Client], make_scan: type[Scan], tiny_bundle: Path
) -> None:
    served = serve()
    scan = make_scan(n_volumes=20)
    client = connect(served.address)
    client.ask(scan.start)
    command = [sys.executable, "-m", "realtime", "serve", "--bundle", str(tiny_bundle), "--headless"]
    command += ["--source", "tcp://127.0.0.1:0", "--out", str(served.out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert f"works in {served.out}; stop it or choose another --out" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    for index in range(20):  # the first has not noticed
        client.send_volume(scan, index)
    client.ask(scan.end())
    served.closed(scan)
    assert served.children().keys() == {"record", "decode"}


def test_a_run_is_gone_on_with_on_its_engine_though_another_is_faster_by_now(
    serve: Callable[..., Served],
    connect: Callable[..., Client],
    make_scan: type[Scan],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle, scan = Bundle.open(tiny_bundle), make_scan(n_volumes=20)
    remember(bundle, "openvino", 1.0)
    for faster_s in (0.1, 10.0):
        remember(bundle, "onnxruntime-cpu", faster_s)
        served = serve("--engine", "auto")
        client = connect(served.address)
        held = client.ask(scan.start)
        assert isinstance(held, wire.RunAccepted)
        first = held.held[-1][1] if held.held else 0
        for index in range(first, first + 10):
            client.send_volume(scan, index)
        wait_until(
            lambda: any(row.volume == first + 9 for row in read_recorded(served.run_folder(scan)).rows),  # noqa: B023
            "that the volumes are decoded",
        )
        if faster_s < 1:
            served.kill()
    client.ask(scan.end())
    info = read_run_file(served.closed(scan))
    assert info.engine.name == "onnxruntime-cpu"
    assert info.changed_midway == ()
    assert "a run that is still open was begun on onnxruntime-cpu" in served.said
