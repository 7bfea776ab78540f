from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from realtime.service.service import Options

from realtime.errors import ServeError
from realtime.report import write
from realtime.service.demo import Replay, demo, scanner_command

RUN_ID = "sub-01_ses-nsd01_task-nsdcore_run-01"
PATIENCE_S = 300.0
DEMO = """
import sys
from pathlib import Path
from realtime.service.demo import Replay, demo
from realtime.service.service import Options

bundle, nsd, out = map(Path, sys.argv[1:])
options = Options(bundle=bundle, bundle_is_demo=True, source="tcp://127.0.0.1:0", port=None, out=out)
demo(options, Replay(nsd=nsd, speed=10.0), open_browser=False, tell=lambda line: print(line, flush=True))
"""


def options(bundle: Path, out: Path, port: int | None = None) -> Options:
    return Options(bundle=bundle, bundle_is_demo=True, source="tcp://127.0.0.1:0", port=port, out=out)


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
    demo(options(tiny_bundle, tmp_path, port=0), replay, open_browser=False, tell=said.append)
    summary = account_of(tmp_path)
    assert (summary["planned"], summary["received"], summary["missing"]) == (225, 225, 0)
    assert summary["state"] == "closed"
    assert summary["identification"]["pixels"]["n_trials"] + 1 >= summary["decoded"] // 6
    assert "left out of this test" in summary["notes"][-1]
    assert (tmp_path / "report.html").is_file()
    assert account_of(tmp_path / RUN_ID) == summary
    text = "\n".join(said)
    assert said[0].startswith("open http://127.0.0.1:")
    assert "the shipped demo bundle (a simulated subject)" in text
    assert "225 planned, 225 received" in text
    assert str(tmp_path / "report.html") in text


@pytest.mark.skipif(sys.platform != "linux", reason="finds the scanner's process in /proc")
def test_interrupting_the_demo_ends_the_run_and_the_scanner_and_still_reports(
    tiny_bundle: Path, tiny_nsd: Path, tmp_path: Path, account_of: Callable[[Path], dict[str, Any]]
) -> None:
    out = tmp_path / "runs"
    command = [sys.executable, "-c", DEMO, str(tiny_bundle), str(tiny_nsd), str(out)]
    frames = out / RUN_ID / "frames"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
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
    assert len(children) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the scanner's process in /proc")
def test_a_demo_that_is_killed_leaves_no_scanner_behind(
    tiny_bundle: Path, tiny_nsd: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    command = [sys.executable, "-c", DEMO, str(tiny_bundle), str(tiny_nsd), str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end_s = time.monotonic() + PATIENCE_S
        while not (out / RUN_ID / "volumes.journal").exists():
            assert process.poll() is None
            assert time.monotonic() < end_s
            time.sleep(0.01)
        (scanner,) = children_of(process.pid)
        process.kill()
    while is_running(scanner):
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
            options(tiny_bundle, tmp_path / "out"),
            Replay(nsd=root, speed=60.0),
            open_browser=False,
            tell=lambda line: None,
        )


def test_the_command_names_the_run_that_is_there(tiny_nsd: Path, tmp_path: Path) -> None:
    command = scanner_command(Replay(nsd=tiny_nsd, speed=2.5))
    assert command[1:5] == ["-P", "-m", "sim", "replay"]
    pairs = dict(zip(command[5:-1:2], command[6:-1:2], strict=True))
    assert (pairs["--subject"], pairs["--session"], pairs["--run"], pairs["--speed"]) == (
        "1",
        "1",
        "1",
        "2.5",
    )
    assert command[-1] == "--connect"
    with pytest.raises(ServeError, match="expected one run to replay.*found 0"):
        scanner_command(Replay(nsd=tmp_path, speed=1.0))
