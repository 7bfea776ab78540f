"""The one training loop: DeepSpeed ZeRO-2 with optimizer offload, progress, checkpoints, exact resume.

An objective is a module that takes a batch and returns its loss. Data order, noise and dropout of a step
depend on (seed, step) alone, so a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from train.errors import TrainError
from train.recipe import Training

Batch = dict[str, Tensor]
_DEEPSPEED_JSON = Path(__file__).parent / "deepspeed.json"
_TAG = "checkpoint"
_log = logging.getLogger(__name__)


def choose_precision(wanted: str) -> str:
    """``auto`` is fp16 where the device has it, else bf16; anything else is taken as it is."""
    if wanted != "auto":
        return wanted
    return "fp16" if torch.cuda.is_available() else "bf16"


def deepspeed_config(training: Training, precision: str) -> dict[str, Any]:
    """``deepspeed.json`` with the recipe's numbers filled in."""
    config: dict[str, Any] = json.loads(_DEEPSPEED_JSON.read_text())
    config["train_micro_batch_size_per_gpu"] = training.micro_batch
    config["gradient_accumulation_steps"] = training.accumulation
    config["optimizer"]["params"]["lr"] = training.peak_learning_rate
    config["scheduler"]["params"] |= {
        "total_num_steps": training.steps,
        "warmup_num_steps": training.warmup_steps,
    }
    if precision != "fp32":
        config[precision] = {"enabled": True}
    return config


def fit(
    objective: nn.Module,
    batch_of: Callable[[NDArray[np.int64]], Batch],
    n_examples: int,
    training: Training,
    *,
    folder: Path,
    seed: int,
    name: str,
    save_every_s: float = 300,
) -> list[float]:
    """Train ``objective`` in place and return the loss of every step run here.

    ``batch_of`` turns example indices into a batch. Checkpoints and ``losses.tsv`` go to ``folder``; where
    one is found there, training goes on from it.

    :raises TrainError: when the loss stops being finite, or ``folder`` holds another run's checkpoint.
    """
    engine = start_engine(objective, training)
    folder.mkdir(parents=True, exist_ok=True)
    first = _resume(engine, folder, training, seed)
    losses: list[float] = []
    saved_at = time.monotonic()
    bar = tqdm(range(first, training.steps), initial=first, total=training.steps, desc=name, mininterval=2)
    with (folder / "losses.tsv").open("a") as table:
        for step in bar:
            losses.append(_step(engine, batch_of, n_examples, training, seed, step))
            table.write(f"{step}\t{losses[-1]:.6f}\n")
            if step % 20 == 0:
                bar.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}", refresh=False)
                table.flush()
            last = step + 1 == training.steps
            if last or time.monotonic() - saved_at > save_every_s:
                _save(engine, folder, training, seed, step + 1)
                saved_at = time.monotonic()
    return losses


def batch_indices(seed: int, step: int, size: int, n_examples: int) -> NDArray[np.int64]:
    """Which examples a step sees: a new permutation each epoch, a pure function of (seed, step)."""
    positions = np.arange(step * size, (step + 1) * size)
    epochs = positions // n_examples
    chosen = np.empty(size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([seed, int(epoch)]).permutation(n_examples)
        here = epochs == epoch
        chosen[here] = order[positions[here] % n_examples]
    return chosen


def _step(
    engine: Any,
    batch_of: Callable[[NDArray[np.int64]], Batch],
    n_examples: int,
    training: Training,
    seed: int,
    step: int,
) -> float:
    total = 0.0
    for part in range(training.accumulation):
        rank_step = (step * training.accumulation + part) * engine.world_size + engine.global_rank
        indices = batch_indices(seed, rank_step, training.micro_batch, n_examples)
        batch = {key: value.to(engine.device) for key, value in batch_of(indices).items()}
        torch.manual_seed((seed << 32) + rank_step)
        loss = engine(batch)
        engine.backward(loss)
        engine.step()
        total += loss.item() / training.accumulation
    if not np.isfinite(total):
        raise TrainError(
            f"expected a finite loss, got {total} at step {step}; lower peak_learning_rate or take bf16"
        )
    return total


def start_engine(objective: nn.Module, training: Training) -> Any:
    """DeepSpeed's engine; on its own a single process, under the ``deepspeed`` launcher one of many."""
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    import deepspeed  # slow to import, and it reads the environment set above

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    precision = choose_precision(training.precision)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=objective, model_parameters=parameters, config=deepspeed_config(training, precision)
    )
    trained = sum(p.numel() for p in parameters)
    frozen = sum(p.numel() for p in objective.parameters()) - trained
    _log.info(
        "training %.2f M parameters (%.2f M frozen) in %s on %s",
        trained / 1e6,
        frozen / 1e6,
        precision,
        engine.device,
    )
    engine.train()
    return engine


def _resume(engine: Any, folder: Path, training: Training, seed: int) -> int:
    if not (folder / "latest").exists():
        return 0
    _, state = engine.load_checkpoint(str(folder))
    ours = {"training": str(training), "seed": seed}
    theirs = {key: state[key] for key in ours}
    if ours != theirs:
        raise TrainError(f"{folder} holds a run with {theirs}, this one has {ours}; choose another --out")
    _log.info("going on at step %d of %d", state["step"], training.steps)
    return int(state["step"])


def _save(engine: Any, folder: Path, training: Training, seed: int, step: int) -> None:
    state = {"step": step, "seed": seed, "training": str(training)}
    # Written beside the old one: an interruption while saving leaves the last whole checkpoint in place.
    tag = f"{_TAG}-{step:06d}"
    engine.save_checkpoint(str(folder), tag=tag, client_state=state)
    if engine.global_rank == 0:
        import shutil

        for old in folder.glob(f"{_TAG}-*"):
            if old.name != tag:
                shutil.rmtree(old)
