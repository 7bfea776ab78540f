"""A served runtime lives on after anything that is wrong, says what it was, and then takes a good run."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import cli, wire
from realtime.errors import WireError
from realtime.record.image import decode_png

from .conftest import Client, Scan, Served


def refused(reply: wire.ToScanner, code: str, *words: str) -> None:
    assert isinstance(reply, wire.Refused), reply
    assert reply.code == code
    assert all(word in reply.message for word in words), reply.message


def test_each_bad_message_is_refused_and_a_good_run_follows(
    serve: Callable[..., Served],
    connect: Callable[..., Client],
    make_scan: type[Scan],
    account_of: Callable[[Path], dict[str, Any]],
) -> None:
    served = serve()
    client = connect(served.address)
    scan = make_scan(n_volumes=30)
    start = scan.start
    moved = tuple(tuple(value + 3 for value in row) for row in start.affine[:3]) + (start.affine[3],)
    version_9 = msgspec.msgpack.encode(msgspec.to_builtins(start) | {"kind": "run_start", "version": 9})

    refused(client.ask(scan.volume(0), scan.voxels(0).tobytes()), "no-run", "send its run start")
    refused(client.ask(scan.end()), "no-run")
    refused(
        client.ask(msgspec.structs.replace(start, subject=2)), "subject", "expected subject 1", "subject 2"
    )
    refused(client.ask(msgspec.structs.replace(start, shape=(7, 6, 6))), "grid", "(6, 6, 6)", "(7, 6, 6)")
    refused(client.ask(msgspec.structs.replace(start, affine=moved)), "grid")
    refused(client.ask(msgspec.structs.replace(start, tr_s=2.0)), "tr", "2.0000 s")
    refused(client.ask(msgspec.structs.replace(start, dtype="complex64")), "header", "dtype")
    client.send_frames(version_9, b"")
    refused(client.reply(), "version", "expected wire version 1, got 9")
    client.send_frames(b"GET / HTTP/1.1")
    refused(client.reply(), "frames")

    assert isinstance(client.ask(start), wire.RunAccepted)
    buffer = scan.voxels(0).tobytes()
    refused(client.ask(scan.volume(0), buffer[:-1]), "size", "expected 432 bytes", "got 431")
    refused(client.ask(scan.volume(0), scan.voxels(0).astype(np.float32).tobytes()), "size", "got 864")
    refused(client.ask(scan.volume(30), buffer), "index", "below 30", "got index 30")
    refused(client.ask(scan.marker(0), b"no picture"), "picture", "expected a PNG")
    refused(client.ask(scan.marker(99), b"no picture"), "index")

    for index in (1, 0, 0, 1, 2):  # out of order and twice is not wrong
        assert client.send_volume(scan, index) == wire.Ack(run_id=scan.run_id, index=index)
    assert client.ask(scan.end("aborted")) == wire.RunClosed(run_id=scan.run_id)
    good = make_scan(run_id="sub-01_task-good", n_volumes=20)
    client.send_run(good)
    assert account_of(served.closed(scan))["received"] == 3
    assert account_of(served.closed(good))["received"] == 20
    assert served.interrupt() == 0
    assert "Traceback" not in served.log()


def test_a_png_that_would_fill_the_memory_is_refused(make_picture: Callable[..., bytes]) -> None:
    bomb = bytearray(make_picture(1))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(WireError, match="at most 2048 px a side, got 60000 x 60000"):
        decode_png(bytes(bomb))
    with pytest.raises(WireError, match="damaged"):
        decode_png(make_picture(1)[:60])


@settings(deadline=None, max_examples=200)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    n_cut=st.integers(0, 60),
)
def test_a_damaged_png_is_decoded_or_refused_and_nothing_else(
    make_picture: Callable[..., bytes], changes: list[tuple[int, int]], n_cut: int
) -> None:
    data = bytearray(make_picture(1))
    for place, value in changes:
        data[place % len(data)] = value
    with contextlib.suppress(WireError):
        assert decode_png(bytes(data[: len(data) - n_cut])).shape[2] == 3


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def serve_here(bundle: Path, out: Path, *options: str) -> int:
    return cli.main(["serve", "--headless", "--bundle", str(bundle), "--out", str(out), *options])


def test_a_bundle_with_a_changed_byte(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(tiny_bundle, changed)
    graph = bytearray((changed / "denoise.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (changed / "denoise.onnx").write_bytes(graph)
    assert serve_here(changed, tmp_path / "runs", "--source", "tcp://127.0.0.1:0") == 2
    assert "denoise.onnx" in one_line(capsys)


def test_a_source_port_in_use(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert serve_here(tiny_bundle, tmp_path, "--source", address) == 2
    assert f"{address} is in use" in one_line(capsys)


def test_a_page_port_in_use(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        options = ["--source", "tcp://127.0.0.1:0", "--port", port, "--out", str(tmp_path)]
        assert cli.main(["serve", "--bundle", str(tiny_bundle), *options]) == 2
    assert port in one_line(capsys)


def test_a_missing_nsd_file_is_named_by_the_scanner(tiny_nsd: Path, tmp_path: Path) -> None:
    root = tmp_path / "nsd"
    shutil.copytree(tiny_nsd, root)
    design = next(root.rglob("design_session01_run01.tsv"))
    design.unlink()
    command = [sys.executable, "-m", "sim", "replay", "--nsd", str(root), "--connect", "tcp://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert str(design) in done.stderr
    assert done.stderr.count("\n") == 1
