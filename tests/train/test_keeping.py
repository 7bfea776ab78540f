"""Folders that two processes want, and files that are whole or not there."""

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
from train.store.atomic import alone_in, whole, write_whole

HOLD = """
import sys
from pathlib import Path
from train.store.atomic import alone_in
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
        with pytest.raises(TrainError, match=rf"expected to be alone in {folder}, but another process"):
            with alone_in(folder, wait=False):
                pytest.fail("two processes are in it")
    with alone_in(folder, wait=False):
        pass  # it was killed, not asked to leave


def test_who_waits_says_so_once_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with another_process_in(tmp_path) as process, caplog.at_level("INFO", logger="train.store.atomic"):
        threading.Timer(0.5, process.send_signal, [signal.SIGKILL]).start()
        with alone_in(tmp_path, wait=True):
            assert process.wait(5) == -signal.SIGKILL, "it was not waited for"
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for another process, which is at work in {tmp_path}"
    ]


def test_a_process_may_enter_again_and_stays_until_it_has_left_as_often(tmp_path: Path) -> None:
    with alone_in(tmp_path, wait=False):
        with alone_in(tmp_path / ".." / tmp_path.name, wait=False):
            pass
        done = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True, input=""
        )
        assert "expected to be alone" in done.stderr


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_whole(path, "old")

    def interrupted() -> None:
        with whole(path) as partial:
            partial.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_one_and_of_what_a_killed_process_left(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in (folder.name, f".partial-{folder.name}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    with whole(folder) as partial:
        partial.mkdir()
        (partial / "weights").touch()
        assert (folder / "half").exists()
    assert [path.name for path in folder.iterdir()] == ["weights"]
    assert list(tmp_path.iterdir()) == [folder]
