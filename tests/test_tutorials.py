"""A first decoder by the commands of its tutorial, in their order and in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from nsd import TASK_RUNS_PER_SESSION, RunKey, time_resolved_split
from realtime.service.serve import READY
from train.recipe import read_recipe, shipped_recipes

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tutorials" / "first-decoder.md"
TEXT = PAGE.read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [shlex.split(line) for block in BLOCKS for line in block.splitlines() if "pip install" not in line]
SYNTHESIZE, FIT, EVALUATE, EXPORT, SERVE, REPLAY = COMMANDS
PATIENCE_S = 600


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def changed(command: list[str], **options: object) -> list[str]:
    """The command with other values of some options."""
    words = list(command)
    for name, value in options.items():
        words[words.index(f"--{name}") + 1] = str(value)
    return words


def test_the_tutorial_replays_a_run_that_its_training_holds_out() -> None:
    subject, n_sessions = int(option(SYNTHESIZE, "--subject")), int(option(SYNTHESIZE, "--sessions"))
    runs = [
        RunKey(subject, session, run)
        for session in range(1, n_sessions + 1)
        for run in range(1, TASK_RUNS_PER_SESSION + 1)
    ]
    _, held_out = time_resolved_split(runs, seed=1)
    assert RunKey(subject, int(option(REPLAY, "--session")), int(option(REPLAY, "--run"))) in held_out
    assert (
        f"run {held_out[0].run} and {held_out[1].run} of session 2, run {held_out[2].run} of session 3"
        in TEXT
    )


def test_the_tutorial_says_how_long_its_recipe_trains() -> None:
    assert f"trains for {read_recipe(Path(option(FIT, '--recipe'))).fit.steps} steps" in TEXT


@pytest.mark.slow
def test_a_first_decoder_by_the_commands_of_the_tutorial(tmp_path: Path, compiler: str) -> None:
    """With one session instead of three, 20 steps instead of 600, and a faster scanner."""
    recipe = option(FIT, "--recipe")
    text = shipped_recipes()[recipe].read_text()
    short = re.sub(r"(?<=\[fit\]\nsteps = )\d+", "20", text)
    (tmp_path / recipe).write_text(short)  # a file comes before a shipped recipe of its name
    done(changed(SYNTHESIZE, sessions=1), tmp_path)
    said = done(FIT, tmp_path)
    assert "base model: plain" in said
    found = re.search(r"replay a held-out run: (python -m sim replay .*)", said)
    assert found
    session, run = (int(option(shlex.split(found[1]), name)) for name in ("--session", "--run"))
    assert found[0] in done(changed(EVALUATE, trials=8), tmp_path)
    assert "| Pixels by decode |" in (tmp_path / "results" / "table.md").read_text()
    done(EXPORT, tmp_path)
    bundle = tmp_path / option(EXPORT, "--out")
    assert f"Held out: session {session}: run {run}." in (bundle / "README.md").read_text()
    with TemporaryDirectory() as private:
        address = f"ipc://{private}/scanner"  # free, and short enough for a socket
        with served([*SERVE, "--headless", "--source", address], tmp_path):
            replay = changed(REPLAY, session=session, run=run, speed=32)
            done([*replay, "--connect", address], tmp_path)
    folder = tmp_path / "runs" / f"sub-01_ses-nsd{session:02d}_task-nsdcore_run-{run:02d}"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["state"] == "closed"
    states = ("decoded", "warming", "censored", "skipped", "missing")
    assert sum(summary[state] for state in states) == summary["planned"]
    assert summary["decoded"] > 0
    assert (folder / "report.html").is_file()


def done(command: list[str], folder: Path) -> str:
    """What a command prints, once it has succeeded."""
    process = subprocess.run(
        [sys.executable, *command[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


@contextmanager
def served(command: list[str], folder: Path) -> Iterator[None]:
    """``realtime serve`` in a process of its own, which closes its runs when it is interrupted."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert any(READY in line for line in process.stdout), "it did not start"
        yield
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.stdout.close()
