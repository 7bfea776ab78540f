"""Folders that two processes want to write."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from train.errors import TrainError
from train.store.lock import alone_in

HOLD = """
import sys
from pathlib import Path
from train.store.lock import alone_in
with alone_in(Path(sys.argv[1]), wait=False):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process_in(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that stays in ``folder`` until its input ends."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        try:
            yield process
        finally:
            process.kill()


def test_who_does_not_wait_is_told_which_folder_is_busy(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    with another_process_in(folder):
        with pytest.raises(TrainError, match=rf"expected no other process in {folder}, but one is writing"):
            with alone_in(folder, wait=False):
                pytest.fail("two processes are in it")
    with alone_in(folder, wait=False):
        pass  # it was killed, not asked to leave


def test_who_waits_says_so_once_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with another_process_in(tmp_path) as process, caplog.at_level("INFO", logger="train.store.lock"):
        threading.Timer(0.5, process.send_signal, [signal.SIGKILL]).start()
        with alone_in(tmp_path, wait=True):
            assert process.wait(5) == -signal.SIGKILL, "it was not waited for"
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for another process that is writing in {tmp_path}"
    ]


def test_a_process_may_enter_again_and_stays_until_it_has_left_as_often(tmp_path: Path) -> None:
    with alone_in(tmp_path, wait=False):
        with alone_in(tmp_path / ".." / tmp_path.name, wait=False):
            pass
        done = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True, input=""
        )
        assert "expected no other process" in done.stderr
