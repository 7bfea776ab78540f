"""DeepSpeed's engine: ZeRO-2 with optimizer offload, its one configuration file, its checkpoints.

    FOLDER/run.json            what the run is; a folder of another run is refused
    FOLDER/latest              which checkpoint is whole
    FOLDER/checkpoint-NNNNNN/  DeepSpeed's: parameters that learn, optimizer, scheduler, losses so far

``deepspeed.json`` is the configuration; where it says "auto", the recipe's number goes in. Its AdamW is
torch's fused one, as fast on the CPU as DeepSpeed's own, which multiplies up the powers of its betas and does
not save them: after a resume its losses would differ in their last digits.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch.distributed as dist
from torch import nn

from realtime.atomic import write_whole
from train.errors import TrainError
from train.loop.distributed import decided_by_main, is_main_process, join_processes, n_processes
from train.recipe import Training

DEEPSPEED_JSON = Path(__file__).parent / "deepspeed.json"
_TAG = "checkpoint"
_log = logging.getLogger(__name__)


def has_fp16() -> bool:
    """Whether DeepSpeed trains in fp16 on this machine's device."""
    from deepspeed.accelerator import get_accelerator

    return bool(get_accelerator().is_fp16_supported())


def choose_precision(wanted: str) -> str:
    """``auto`` is fp16 where the device has it, else bf16; anything else is taken as it is.

    :raises TrainError: when fp16 is asked of a device that has none.
    """
    if wanted == "auto":
        return "fp16" if has_fp16() else "bf16"
    if wanted == "fp16" and not has_fp16():
        raise TrainError('this device has no fp16; set precision = "auto", "bf16" or "fp32" in the recipe')
    return wanted


def deepspeed_config(training: Training, precision: str, n_devices: int = 1) -> dict[str, Any]:
    """``deepspeed.json`` with the recipe's numbers filled in.

    :raises TrainError: when the batch does not divide over so many devices.
    """
    config: dict[str, Any] = json.loads(DEEPSPEED_JSON.read_text())
    config["train_batch_size"] = training.batch
    config["train_micro_batch_size_per_gpu"] = training.micro_batch
    config["gradient_accumulation_steps"] = training.accumulation(n_devices)
    config["fp16"]["enabled"] = precision == "fp16"
    config["bf16"]["enabled"] = precision == "bf16"
    config["optimizer"]["params"]["lr"] = training.peak_learning_rate
    config["scheduler"]["params"]["total_num_steps"] = training.steps
    config["scheduler"]["params"]["warmup_num_steps"] = training.warmup_steps
    return config


def start_engine(objective: nn.Module, training: Training) -> Any:
    """DeepSpeed's engine around ``objective``, in training mode, in this process or this one among many.

    :raises TrainError: when the device lacks the precision, or the batch does not divide.
    """
    precision = choose_precision(training.precision)
    config = deepspeed_config(training, precision, n_processes())
    join_processes()
    import deepspeed  # slow to import, and it reads the environment

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=objective, model_parameters=parameters, config=config)
    if is_main_process():
        trained = sum(p.numel() for p in parameters)
        frozen = sum(p.numel() for p in objective.parameters()) - trained
        _log.info(
            "training %.2f M parameters (%.2f M frozen) in %s on %s; batch %d = %d x %d accumulated x %d %s",
            trained / 1e6,
            frozen / 1e6,
            "bf16, as this device has no fp16"
            if (training.precision, precision) == ("auto", "bf16")
            else precision,
            engine.device.type,
            training.batch,
            training.micro_batch,
            training.accumulation(n_processes()),
            n_processes(),
            "processes" if n_processes() > 1 else "process",
        )
    engine.train()
    return engine


def resume(engine: Any, folder: Path, training: Training, seed: int) -> list[float]:
    """Load the last whole checkpoint in ``folder``, if there is one; the losses of the steps behind it.

    Whether there is one, and which, the main process decides: the view that hosts have of a shared folder may
    differ for some seconds.

    :raises TrainError: when it is of another run, or not readable.
    """
    ours = {**msgspec.to_builtins(training), "seed": seed, "processes": n_processes()}
    tag = decided_by_main(lambda: _whole_checkpoint(folder, ours))
    if tag is None:
        return []
    # Not strict: what is frozen is the base model's, and not in the checkpoint.
    path, state = engine.load_checkpoint(str(folder), tag=tag, load_module_strict=False)
    if path is None:
        raise TrainError(f"expected a checkpoint in {folder / tag}, as {folder / 'latest'} says, found none")
    if is_main_process():
        _log.info("going on at step %d of %d", len(state["losses"]), training.steps)
    return list(state["losses"])


def save(engine: Any, folder: Path, losses: list[float]) -> None:
    """Write a checkpoint beside the one before, then take that one away: one is whole at any moment.

    All processes must call it together.
    """
    tag = f"{_TAG}-{len(losses):06d}"
    engine.save_checkpoint(
        str(folder),
        tag=tag,
        client_state={"losses": losses},
        save_latest=False,  # DeepSpeed's own is empty for a moment
        exclude_frozen_parameters=True,
    )
    if is_main_process():
        write_whole(folder / "latest", tag)
        for old in folder.glob(f"{_TAG}-*"):
            if old.name != tag:
                shutil.rmtree(old)
    dist.barrier()


def _whole_checkpoint(folder: Path, ours: dict[str, Any]) -> str | None:
    """The tag of the last whole checkpoint; where there is none, the note of a new run is written."""
    latest = folder / "latest"
    if not latest.exists():
        write_whole(folder / "run.json", json.dumps(ours, indent=1) + "\n")
        return None
    _check_same_run(folder, ours)
    return latest.read_text().strip()


def _check_same_run(folder: Path, ours: dict[str, Any]) -> None:
    try:
        theirs = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise TrainError(f"expected {folder / 'run.json'} beside the checkpoint: {error}") from error
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise TrainError(
                f"{folder} holds a run with {name} = {theirs.get(name)}, this one has {value}; "
                "go on as it was begun, or choose another --out"
            )
