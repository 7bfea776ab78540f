"""Any process dies by ``kill -9`` in mid-run; no volume is lost and the account says what happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from realtime import wire
from realtime.cli import main
from realtime.record.reader import read_recorded
from realtime.service.process import Role
from realtime.service.supervisor import TITLES

from .conftest import Client, Scan, Served, closed, wait_until

RUN_ID = "sub-01_ses-nsd01_task-nsdcore_run-01"
PATIENCE_S = 300.0


class Replay:
    """``python -m sim replay`` as a process."""

    def __init__(self, nsd: Path, address: str, speed: float) -> None:
        command = [sys.executable, "-m", "sim", "replay", "--nsd", str(nsd), "--connect", address]
        self.process = subprocess.Popen(
            [*command, "--speed", str(speed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def replay(tiny_nsd: Path) -> Iterator[Callable[..., Replay]]:
    started: list[Replay] = []

    def start(address: str, speed: float = 60.0) -> Replay:
        started.append(Replay(tiny_nsd, address, speed))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()


def n_frames(folder: Path) -> int:
    return len(list((folder / "frames").glob("*.png"))) if folder.exists() else 0


def test_the_runtime_is_killed_and_goes_on(
    serve: Callable[..., Served], replay: Callable[..., Replay], account_of: Callable[[Path], dict[str, Any]]
) -> None:
    first = serve()
    folder = first.out / RUN_ID
    scanner = replay(first.address)
    wait_until(lambda: n_frames(folder) >= 25, "25 frames")
    first.kill()
    before = read_recorded(folder)
    frames = {row.frame: (folder / row.frame).read_bytes() for row in before.rows if row.frame}
    assert before.info.state == "open"
    second = serve(source=first.address)
    assert scanner.wait() == 0
    summary = account_of(closed(folder))
    assert second.interrupt() == 0
    assert (summary["planned"], summary["received"], summary["missing"]) == (225, 225, 0)
    assert any("after a restart" in note for note in summary["notes"])
    after = read_recorded(folder)
    assert after.rows[: len(before.rows)] == before.rows or set(before.rows) <= set(after.rows)
    assert all((folder / name).read_bytes() == png for name, png in frames.items())
    assert len(after.pictures) == 62
    assert json.loads((folder / "run.json").read_text())["state"] == "closed"


@pytest.mark.parametrize("role", ["record", "decode", "page"])
def test_one_process_of_the_runtime_is_killed_and_the_run_goes_on(
    serve: Callable[..., Served],
    replay: Callable[..., Replay],
    account_of: Callable[[Path], dict[str, Any]],
    tiny_bundle: Path,
    tmp_path: Path,
    role: Role,
) -> None:
    served = serve("--port", "0")
    folder = served.out / RUN_ID
    scanner = replay(served.address)
    wait_until(lambda: n_frames(folder) >= 10, "10 frames")
    killed = served.child(role)
    others = {each: process.pid for each, process in served.children().items() if each != role}
    killed.kill()
    assert scanner.wait() == 0
    summary = account_of(closed(folder))
    assert (summary["planned"], summary["received"], summary["missing"]) == (225, 225, 0)
    again = served.child(role)
    assert again.pid != killed.pid
    assert {each: served.child(each).pid for each in others} == others
    assert f"the {TITLES[role]} has died (SIGKILL) and is started again" in served.log()
    assert served.interrupt() == 0
    options = ["--bundle", str(tiny_bundle), "--out", str(tmp_path / "again")]
    assert main(["replay", str(folder), *options]) == 0


def test_volumes_are_acknowledged_whatever_the_decoder_does(
    serve: Callable[..., Served],
    connect: Callable[..., Client],
    make_scan: type[Scan],
    account_of: Callable[[Path], dict[str, Any]],
) -> None:
    """And all runs are decoded in the end."""
    scans = [make_scan(run_id=f"sub-01_run-{number}", n_volumes=30) for number in (1, 2, 3)]
    served = serve()
    decoder = served.child("decode")
    decoder.suspend()
    client = connect(served.address)
    try:
        for scan in scans:
            client.send_run(scan)
            assert n_frames(served.run_folder(scan)) == 0
    finally:
        decoder.resume()
    for scan in scans:
        summary = account_of(served.closed(scan))
        assert (summary["received"], summary["missing"]) == (30, 0)
        assert summary["decoded"] > 0


def test_the_scanner_is_killed_and_goes_on(
    serve: Callable[..., Served], replay: Callable[..., Replay], account_of: Callable[[Path], dict[str, Any]]
) -> None:
    served = serve()
    folder = served.out / RUN_ID
    first = replay(served.address)
    wait_until(lambda: n_frames(folder) >= 25, "25 frames")
    first.kill()
    assert replay(served.address).wait() == 0
    summary = account_of(closed(folder))
    assert served.interrupt() == 0
    assert (summary["received"], summary["missing"]) == (225, 0)
    assert "the scanner is back" in served.log()


def test_what_was_acknowledged_is_held_after_a_kill_at_any_moment(
    serve: Callable[..., Served], connect: Callable[..., Client], make_scan: type[Scan]
) -> None:
    scan = make_scan(n_volumes=60)
    served = serve()
    client = connect(served.address)
    client.ask(scan.start)
    for index in range(0, 30, 2):  # every other volume: the rest is a gap that has still to be filled
        client.send_volume(scan, index)
    served.kill()
    again = serve(source=served.address)
    held = [(index, index + 1) for index in range(0, 30, 2)]
    reply = connect(again.address).ask(scan.start)
    assert reply == wire.RunAccepted(run_id=scan.run_id, held=held)


def test_a_runtime_stopped_in_mid_run_reports_what_it_has(
    serve: Callable[..., Served],
    connect: Callable[..., Client],
    make_scan: type[Scan],
    account_of: Callable[[Path], dict[str, Any]],
) -> None:
    scan = make_scan(n_volumes=60)
    served = serve()
    client = connect(served.address)
    client.ask(scan.start)
    for index in range(20):
        client.send_volume(scan, index)
    # The decoder may hear of the run later than the recorder has it; it reports those that it has begun.
    wait_until((served.run_folder(scan) / "frames").exists, "the decoder at work")
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(PATIENCE_S) == 0
    summary = account_of(served.run_folder(scan))
    assert (summary["state"], summary["received"]) == ("open", 20)
    assert summary["missing"] == 60 - 20 + sum_of_undecoded(served.run_folder(scan))


def sum_of_undecoded(folder: Path) -> int:
    """Volumes that came and whose decode the stop cut short: they stay open, to be decoded later."""
    recorded = read_recorded(folder)
    return len(recorded.received) - len(recorded.rows)
