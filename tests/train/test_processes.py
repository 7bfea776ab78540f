"""Many processes: the losses of one, stopped together, on several hosts; one goes first, all hear it fail.

Hosts are two launchers on this machine, as ``deepspeed --no_ssh`` starts them where there is no ssh.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from train.checkpoints.checkpoint import load_checkpoint
from train.errors import TrainError
from train.fitting.fit import fit_subjects
from train.fitting.job import Order
from train.loop.loop import fit
from train.recipe import Recipe

from .line import Line, batch_of, training

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiler")]
HERE = Path(__file__).parent
DEEPSPEED = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet"]
TIMEOUT_S = 300


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(*arguments: str) -> subprocess.Popen[str]:
    """Start the deepspeed launcher, in a process group of its own, as a shell would."""
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]),
    }
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    return subprocess.Popen(
        [*DEEPSPEED, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end_of(process: subprocess.Popen[str]) -> str:
    """Wait for it and for all that it started; what they printed."""
    try:
        return process.communicate(timeout=TIMEOUT_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def logged(folder: Path) -> list[float]:
    path = folder / "losses.tsv"
    return [float(line.split("\t")[1]) for line in path.read_text().splitlines()] if path.exists() else []


def as_toml(table: dict[str, Any], name: str = "") -> str:
    """A recipe's numbers, strings, switches and lists are written as in JSON."""
    lines = [f"[{name}]"] if name else []
    plain = {key: value for key, value in table.items() if value is not None and not isinstance(value, dict)}
    lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    parts = [
        as_toml(value, f"{name}.{key}".lstrip(".")) for key, value in table.items() if isinstance(value, dict)
    ]
    return "\n".join([*lines, *parts])


def test_two_processes_stopped_and_started_again_give_the_losses_of_one(tmp_path: Path) -> None:
    whole = fit(Line(), batch_of, 40, training(), folder=tmp_path / "one", seed=3, name="one")
    two = tmp_path / "two"
    command = ["--num_gpus", "2", "--master_port", free_port(), str(HERE / "line.py"), str(two)]
    process = launch(*command, "--step-s", "0.1")
    begun = time.monotonic()
    while len(logged(two)) < 5 and process.poll() is None and time.monotonic() - begun < TIMEOUT_S:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal reaches the whole group
    output = end_of(process)
    assert "process 0 was asked to stop" in output, output
    assert "process 1 was asked to stop" in output, output
    n_before = len(logged(two))
    assert 5 <= n_before < 30
    assert (two / "latest").read_text() == f"checkpoint-{n_before:06d}"
    process = launch(*command)
    output = end_of(process)
    assert process.returncode == 0, output
    assert len(logged(two)) == 30
    np.testing.assert_allclose(logged(two), whole, rtol=1e-5)
    with pytest.raises(TrainError, match="processes = 2, this one has 1; continue with the same settings"):
        fit(Line(), batch_of, 40, training(), folder=two, seed=3, name="one")


def test_two_hosts_fit_a_subject_as_one_process_does(
    tmp_path: Path, tiny_nsd: Path, tiny_base: Path, tiny_recipe: Recipe
) -> None:
    fit_settings = msgspec.structs.replace(tiny_recipe.fit, batch=8, micro_batch=4)
    recipe = msgspec.structs.replace(tiny_recipe, fit=fit_settings)
    (tmp_path / "recipe.toml").write_text(as_toml(msgspec.to_builtins(recipe)))
    one = tmp_path / "one"
    fit_subjects(Order(root=tiny_nsd, subjects=[1], recipe=recipe, base=tiny_base, out=one))
    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    launcher = ["--hostfile", str(tmp_path / "hosts"), "--no_ssh", "--master_addr", "127.0.0.1"]
    launcher += ["--master_port", free_port()]
    files = {"--nsd": tiny_nsd, "--base": tiny_base, "--recipe": tmp_path / "recipe.toml"}
    files |= {"--out": tmp_path / "two"}
    command = [
        "--module",
        "train",
        "fit",
        "--subject",
        "1",
        *(str(x) for pair in files.items() for x in pair),
    ]
    hosts = [launch(*launcher, "--node_rank", str(rank), *command) for rank in (0, 1)]
    outputs = [end_of(host) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(outputs)
    assert "batch 8 = 4 x 1 accumulated x 2 processes" in outputs[0]
    assert "training" not in outputs[1]
    np.testing.assert_allclose(
        logged(tmp_path / "two/training"), logged(tmp_path / "one/training"), rtol=1e-5
    )
    ours, theirs = load_checkpoint(tmp_path / "one"), load_checkpoint(tmp_path / "two")
    for name, weight in ours.brain.state_dict().items():
        np.testing.assert_allclose(theirs.brain.state_dict()[name], weight, rtol=1e-3, atol=1e-5)


RESUMES = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[-2])
from line import X, Line, batch_of, training
from train.loop.loop import fit
folder = Path(sys.argv[-1]) / os.environ["RANK"]
fit(Line(), batch_of, len(X), training(3), folder=folder, seed=3, name="line")
"""


def test_the_main_process_decides_where_all_go_on(tmp_path: Path) -> None:
    """A host that sees a folder as it was before, here one of its own, does not go on alone."""
    (tmp_path / "resumes.py").write_text(RESUMES)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "latest").write_text("checkpoint-000002")
    script = [str(tmp_path / "resumes.py"), str(HERE), str(tmp_path)]
    process = launch("--num_gpus", "2", "--master_port", free_port(), *script)
    output = end_of(process)
    assert process.returncode == 0, output
    assert len(logged(tmp_path / "0")) == 3


TURNS = """
import sys
from pathlib import Path
from train.errors import TrainError
from train.fitting.job import Order
from train.loop.distributed import is_main_process, main_process_first
folder = Path(sys.argv[-1])
try:
    with main_process_first():
        if is_main_process():
            if folder.name == "fails":
                raise TrainError("the disk is full")
            folder.joinpath("made").touch()
        assert folder.joinpath("made").exists(), "it did not wait"
    print("done", flush=True)
except TrainError as error:
    print(f"main={is_main_process()}: {error}", flush=True)
"""


@pytest.mark.parametrize("outcome", ["works", "fails"])
def test_the_others_wait_for_the_first_and_hear_when_it_fails(tmp_path: Path, outcome: str) -> None:
    (tmp_path / "turns.py").write_text(TURNS)
    folder = tmp_path / outcome
    folder.mkdir()
    process = launch("--num_gpus", "2", "--master_port", free_port(), str(tmp_path / "turns.py"), str(folder))
    output = end_of(process)
    assert process.returncode == 0, output
    if outcome == "works":
        assert output.count("done") == 2
    else:
        assert "main=True: the disk is full" in output
        assert "main=False: another process of this training stopped first: the disk is full" in output
