"""Experiments are made over several sittings: stopped or killed, the same command goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from train.recipe import Plateau, Recipe

from .test_processes import as_toml, logged

pytestmark = pytest.mark.slow
TIMEOUT_S = 600
STEPS = 40


@pytest.fixture
def command(tmp_path: Path, tiny_nsd_with_betas: Path, tiny_base: Path, tiny_recipe: Recipe) -> list[str]:
    plateau = Plateau(every_steps=10, measurements=50, fall=0.01, presentations=20)
    recipe = msgspec.structs.replace(
        tiny_recipe,
        fit=msgspec.structs.replace(tiny_recipe.fit, steps=STEPS, ema_decay=0.9, plateau=plateau),
        preprocessing=msgspec.structs.replace(tiny_recipe.preprocessing, train_on=("whole_run",)),
        diffusion=msgspec.structs.replace(tiny_recipe.diffusion, inference_steps=2),
    )
    (tmp_path / "recipe.toml").write_text(as_toml(msgspec.to_builtins(recipe)))
    files = {"--nsd": tiny_nsd_with_betas, "--base": tiny_base, "--recipe": tmp_path / "recipe.toml"}
    files |= {"--work": tmp_path / "work", "--out": tmp_path / "out"}
    return [
        *(sys.executable, "-m", "train", "experiment", "betas"),
        *(str(each) for pair in files.items() for each in pair),
    ]


def wait_for_steps(process: subprocess.Popen[str], models: Path, n: int) -> None:
    begun = time.monotonic()
    while sum(len(logged(path)) for path in models.glob("*/training")) < n:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - begun < TIMEOUT_S
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_sitting_that_ends_is_gone_on_with(how: signal.Signals, command: list[str], tmp_path: Path) -> None:
    models = tmp_path / "work" / "models"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    wait_for_steps(process, models, 5)
    workers = psutil.Process(process.pid).children(recursive=True)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as Ctrl-C in a terminal
    else:
        process.send_signal(how)
    output = process.communicate(timeout=TIMEOUT_S)[0]
    if how != signal.SIGKILL:
        assert process.returncode == 130, output
        assert "interrupted; run the command again to continue" in output
    _, alive = psutil.wait_procs(workers, timeout=TIMEOUT_S)
    assert not alive, "no worker goes on by itself"
    saved = {path.parent.parent.name: path.read_text() for path in models.glob("*/training/latest")}
    assert saved, "what was trained was saved"

    again = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    output = again.stdout + again.stderr
    assert again.returncode == 0, output
    assert re.search(r"\d of 6 models; now .*; about \d+\.\d h of training left", output), output
    assert "made general step 40, held out " in output
    result = json.loads((tmp_path / "out" / "betas.json").read_text())
    assert len(result["curves"]) == 6
    for curve in result["curves"].values():
        assert [step for step, _ in curve["losses"]] == [0, 10, 20, 30, STEPS]
    for finding in result["findings"][:2]:
        assert finding["verdict"] == "cannot be said", "no model had fifty measurements"
        assert "a longer training could decide" in finding["here"]
