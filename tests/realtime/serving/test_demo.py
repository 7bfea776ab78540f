from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from realtime.errors import ServeError
from realtime.report import write
from realtime.service.demo import Replay, demo, scanner_command
from realtime.service.process import Role

RUN_ID = "sub-01_ses-nsd01_task-nsdcore_run-01"
PATIENCE_S = 300.0
DEMO = """
import json, sys
from pathlib import Path
from realtime.service.demo import Replay, demo

out, nsd, arguments = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
replay = Replay(nsd=nsd, speed=10.0)
demo(arguments, out, replay, open_browser=False, tell=lambda line: print(line, flush=True))
"""


def arguments(bundle: Path, out: Path, *, has_page: bool = False) -> dict[Role, list[str]]:
    """Of the processes that the demo starts."""
    common = ["--bundle", str(bundle), "--out", str(out), "--quiet"]
    record: dict[Role, list[str]] = {"record": [*common, "--source", "tcp://127.0.0.1:0"], "decode": common}
    return record | ({"page": [*common, "--port", "0"]} if has_page else {})


def command(bundle: Path, nsd: Path, out: Path) -> list[str]:
    """A demo without a page, as a process."""
    return [sys.executable, "-c", DEMO, str(out), str(nsd), json.dumps(arguments(bundle, out))]


def test_the_demo_replays_the_run_and_reports(
    tiny_bundle: Path,
    tiny_nsd: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    account_of: Callable[[Path], dict[str, Any]],
) -> None:
    monkeypatch.setattr(write, "score_with_network", lambda folder: "the network was left out of this test")
    said: list[str] = []
    replay = Replay(nsd=tiny_nsd, speed=60.0)
    processes = arguments(tiny_bundle, tmp_path, has_page=True)
    demo(processes, tmp_path, replay, open_browser=False, tell=said.append)
    summary = account_of(tmp_path)
    assert (summary["planned"], summary["received"], summary["missing"]) == (225, 225, 0)
    assert summary["state"] == "closed"
    assert summary["identification"]["Pixels"]["n_trials"] + 1 >= summary["decoded"] // 6
    assert "left out of this test" in summary["notes"][-1]
    assert (tmp_path / "report.html").is_file()
    assert account_of(tmp_path / RUN_ID) == summary
    text = "\n".join(said)
    assert said[0].startswith("page: http://127.0.0.1:")
    assert "decoding with bundle tiny, subject 1" in text
    assert "225 planned, 225 received" in text
    assert str(tmp_path / "report.html") in text


@pytest.mark.skipif(sys.platform != "linux", reason="finds the scanner's process in /proc")
def test_interrupting_the_demo_ends_the_run_and_the_scanner_and_still_reports(
    tiny_bundle: Path, tiny_nsd: Path, tmp_path: Path, account_of: Callable[[Path], dict[str, Any]]
) -> None:
    out = tmp_path / "runs"
    frames = out / RUN_ID / "frames"
    demo_command = command(tiny_bundle, tiny_nsd, out)
    with subprocess.Popen(demo_command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end_s = time.monotonic() + PATIENCE_S
        while not (frames.exists() and len(os.listdir(frames)) >= 5):
            assert process.poll() is None
            assert time.monotonic() < end_s
            time.sleep(0.01)
        children = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        said, complaints = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, complaints
    assert "Traceback" not in complaints
    summary = account_of(out)
    assert summary["state"] == "closed"
    assert 10 <= summary["received"] < 225
    assert summary["received"] + summary["missing"] == 225
    assert any("aborted" in note or "stopped" in note for note in summary["notes"])
    assert (out / "report.html").is_file()
    assert f"{summary['received']} received" in said
    assert len(children) == 3  # recorder, decoder, scanner
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the scanner's process in /proc")
def test_a_demo_that_is_killed_leaves_no_process_behind(
    tiny_bundle: Path, tiny_nsd: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    demo_command = command(tiny_bundle, tiny_nsd, out)
    with subprocess.Popen(demo_command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end_s = time.monotonic() + PATIENCE_S
        while not (out / RUN_ID / "volumes.journal").exists():
            assert process.poll() is None
            assert time.monotonic() < end_s
            time.sleep(0.01)
        children = children_of(process.pid)
        assert len(children) == 3
        process.kill()
    while any(map(is_running, children)):
        assert time.monotonic() < end_s
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether it is there and no zombie that its new parent has yet to bury."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid: int) -> list[int]:
    """The processes it started, from any of its threads."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in listed for child in file.read_text().split()]


def test_a_scanner_that_fails_is_quoted(tiny_bundle: Path, tiny_nsd: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "nsd"
    shutil.copytree(tiny_nsd, root)
    next(root.rglob("design_session01_run01.tsv")).unlink()
    with pytest.raises(ServeError, match="the simulated scanner failed: sim: .*design_session01_run01.tsv"):
        demo(
            arguments(tiny_bundle, tmp_path / "out"),
            tmp_path / "out",
            Replay(nsd=root, speed=60.0),
            open_browser=False,
            tell=lambda line: None,
        )


def test_the_command_names_the_run_that_is_there(tiny_nsd: Path, tmp_path: Path) -> None:
    scanner = scanner_command(Replay(nsd=tiny_nsd, speed=2.5))
    assert scanner[1:5] == ["-P", "-m", "sim", "replay"]
    pairs = dict(zip(scanner[5:-1:2], scanner[6:-1:2], strict=True))
    assert (pairs["--subject"], pairs["--session"], pairs["--run"], pairs["--speed"]) == (
        "1",
        "1",
        "1",
        "2.5",
    )
    assert scanner[-1] == "--connect"
    with pytest.raises(ServeError, match="expected one run to replay.*found 0"):
        scanner_command(Replay(nsd=tmp_path, speed=1.0))
