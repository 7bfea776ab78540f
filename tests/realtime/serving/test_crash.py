"""Either side dies by ``kill -9`` in mid-run; no volume is lost and the account says what happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from realtime import wire
from realtime.record.reader import read_recorded

from .conftest import Client, Scan, Served

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


def wait_until(condition: Callable[[], bool]) -> None:
    """Another process's files are all there is to see it by."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def n_frames(folder: Path) -> int:
    return len(list((folder / "frames").glob("*.png"))) if folder.exists() else 0


def test_the_runtime_is_killed_and_goes_on(
    serve: Callable[..., Served], replay: Callable[..., Replay], account_of: Callable[[Path], dict[str, Any]]
) -> None:
    first = serve()
    folder = first.out / RUN_ID
    scanner = replay(first.address)
    wait_until(lambda: n_frames(folder) >= 25)
    first.kill()
    before = read_recorded(folder)
    frames = {row.frame: (folder / row.frame).read_bytes() for row in before.rows if row.frame}
    assert before.info.state == "open"
    second = serve(source=first.address)
    assert scanner.wait() == 0
    assert second.interrupt() == 0
    summary = account_of(folder)
    assert (summary["planned"], summary["received"], summary["missing"]) == (225, 225, 0)
    assert any("after a restart" in note for note in summary["notes"])
    after = read_recorded(folder)
    assert after.rows[: len(before.rows)] == before.rows or set(before.rows) <= set(after.rows)
    assert all((folder / name).read_bytes() == png for name, png in frames.items())
    assert len(after.pictures) == 62
    assert json.loads((folder / "run.json").read_text())["state"] == "closed"


def test_the_scanner_is_killed_and_goes_on(
    serve: Callable[..., Served], replay: Callable[..., Replay], account_of: Callable[[Path], dict[str, Any]]
) -> None:
    served = serve()
    folder = served.out / RUN_ID
    first = replay(served.address)
    wait_until(lambda: n_frames(folder) >= 25)
    first.kill()
    assert replay(served.address).wait() == 0
    assert served.interrupt() == 0
    summary = account_of(folder)
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
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(PATIENCE_S) == 0
    summary = account_of(served.run_folder(scan))
    assert (summary["state"], summary["received"]) == ("open", 20)
    assert summary["missing"] == 60 - 20 + sum_of_undecoded(served.run_folder(scan))


def sum_of_undecoded(folder: Path) -> int:
    """Volumes that came and whose decode the stop cut short: they stay open, to be decoded later."""
    recorded = read_recorded(folder)
    return len(recorded.received) - len(recorded.rows)
