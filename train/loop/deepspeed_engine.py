"""DeepSpeed's engine: ZeRO-2 with optimizer offload, its one configuration file, its checkpoints.

    FOLDER/run.json            settings of the run; a folder of another run is refused
    FOLDER/latest              name of the last complete checkpoint
    FOLDER/checkpoint-NNNNNN/  DeepSpeed's: trained parameters, optimizer, scheduler, losses so far, and where
                               the recipe has them the weights' average (EMA) and the losses on held-out
                               examples, with the average whose loss is the lowest

``deepspeed.json`` is the configuration; "auto" in it stands for the recipe's number. AdamW is torch's fused
one, as fast on the CPU as DeepSpeed's own. DeepSpeed's own accumulates the powers of its betas and does not
save them, so the losses after a resume would differ in their last digits.

A training can be extended: with more steps, and nothing else changed, it goes on from its last checkpoint.
Where the learning rate falls until the last step, it had fallen further there than in a longer training, and
goes on with what the longer one has at this step: it rises once, and falls again until the new end. The
result then depends on where that happened, and is not that of as many steps from the start. Where the rate
does not fall (``plateau``), it is, bit for bit.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch.distributed as dist
from torch import Tensor, nn

from realtime.atomic import write_whole
from train.errors import TrainError
from train.loop.compiling import tell_of_compiling
from train.loop.distributed import decided_by_main, is_main_process, join_processes, n_processes
from train.recipe import Training

DEEPSPEED_JSON = Path(__file__).parent / "deepspeed.json"
_TAG = "checkpoint"
_STATE = ("losses", "average", "held_out")
_log = logging.getLogger(__name__)


def has_fp16() -> bool:
    """Whether DeepSpeed can train in fp16 on this machine's device."""
    from deepspeed.accelerator import get_accelerator

    return bool(get_accelerator().is_fp16_supported())


def choose_precision(wanted: str) -> str:
    """The precision to train in: ``auto`` is fp16 on a device that supports it, else bf16.

    :raises TrainError: fp16 was asked for on a device without it
    """
    if wanted == "auto":
        return "fp16" if has_fp16() else "bf16"
    if wanted == "fp16" and not has_fp16():
        raise TrainError(
            'this device cannot train in fp16; set precision = "auto", "bf16" or "fp32" in the recipe'
        )
    return wanted


def deepspeed_config(training: Training, precision: str, n_devices: int = 1) -> dict[str, Any]:
    """``deepspeed.json`` with the recipe's numbers filled in.

    :raises TrainError: the batch does not divide over the devices
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
    if training.plateau:  # when that comes is not known before
        config["scheduler"]["params"]["cos_min_ratio"] = 1.0
    return config


def start_engine(objective: nn.Module, training: Training) -> Any:
    """DeepSpeed's engine around ``objective``, in training mode, for one or several processes.

    An objective may have ``learning_rates``: peak rates of its parts, by the beginning of their names.

    :raises TrainError: the device lacks the precision, or the batch does not divide
    """
    precision = choose_precision(training.precision)
    config = deepspeed_config(training, precision, n_processes())
    join_processes()
    import deepspeed  # slow to import, and it reads the environment

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if is_main_process():
        tell_of_compiling()
    groups = parameter_groups(objective, training.peak_learning_rate)
    engine, *_ = deepspeed.initialize(model=objective, model_parameters=groups, config=config)
    if is_main_process():
        trained = sum(p.numel() for group in groups for p in group["params"])
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


def parameter_groups(objective: nn.Module, peak_learning_rate: float) -> list[dict[str, Any]]:
    """The trained parameters by peak learning rate; the first group has ``peak_learning_rate``."""
    own: dict[str, float] = getattr(objective, "learning_rates", {})
    groups: dict[float, list[Tensor]] = {peak_learning_rate: []}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            rates = (rate for part, rate in own.items() if name.startswith(part))
            groups.setdefault(next(rates, peak_learning_rate), []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items() if parameters]


def resume(engine: Any, folder: Path, training: Training, seed: int) -> dict[str, Any]:
    """Load the last complete checkpoint in ``folder``, if any; return the state that was saved with it.

    The main process chooses the checkpoint, because hosts may see different states of a shared folder for
    some seconds.

    :raises TrainError: the checkpoint belongs to another run, or cannot be read
    """
    ours = {**msgspec.to_builtins(training), "seed": seed, "processes": n_processes()}
    tag = decided_by_main(lambda: _whole_checkpoint(folder, ours))
    if tag is None:
        return {}
    # Not strict, because frozen weights are the base model's and not in the checkpoint.
    path, state = engine.load_checkpoint(str(folder), tag=tag, load_module_strict=False)
    if path is None:
        raise TrainError(
            f"expected a checkpoint in {folder / tag}, which {folder / 'latest'} names, found none; remove "
            f"{folder} to start again"
        )
    left = engine.get_lr()[0]
    # The optimizer comes with the rate of the schedule that the checkpoint was written by.
    engine.lr_scheduler.step(engine.lr_scheduler.last_batch_iteration)
    if is_main_process():
        _tell(len(state["losses"]), training, left, engine.get_lr()[0])
    return {name: state[name] for name in _STATE if name in state}


def _tell(step: int, training: Training, left: float, rate: float) -> None:
    _log.info("continuing at step %d of %d", step, training.steps)
    if rate != left:
        _log.info(
            "the training is extended: its learning rate had fallen to %.2g, for an earlier end. It goes on "
            "with %.2g, which a training of %d steps has here, and falls again until the last step. So the "
            "result is not that of %d steps from the start",
            left,
            rate,
            training.steps,
            training.steps,
        )


def save(engine: Any, folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, then delete the one before, so that one is complete at any moment.

    All processes must call this together.

    :param state: what goes into it beside the engine's own: ``losses`` of all steps, and others of ``_STATE``
    """
    tag = f"{_TAG}-{len(state['losses']):06d}"
    engine.save_checkpoint(
        str(folder),
        tag=tag,
        client_state=state,
        save_latest=False,  # DeepSpeed's own file is empty for a moment
        exclude_frozen_parameters=True,
    )
    if is_main_process():
        write_whole(folder / "latest", tag)
        for old in folder.glob(f"{_TAG}-*"):
            if old.name != tag:
                shutil.rmtree(old)
    dist.barrier()


def steps_taken(folder: Path) -> int:
    """Steps of the training in ``folder`` that its last complete checkpoint has behind it."""
    latest = folder / "latest"
    return int(latest.read_text().strip().removeprefix(f"{_TAG}-")) if latest.exists() else 0


def _whole_checkpoint(folder: Path, ours: dict[str, Any]) -> str | None:
    """The tag of the last complete checkpoint; None for a new run. Writes ``run.json``."""
    latest = folder / "latest"
    if latest.exists():
        _check_same_run(folder, ours)
    write_whole(folder / "run.json", json.dumps(ours, indent=1) + "\n")
    return latest.read_text().strip() if latest.exists() else None


def _check_same_run(folder: Path, ours: dict[str, Any]) -> None:
    try:
        theirs = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise TrainError(
            f"cannot read {folder / 'run.json'}: {error}; remove {folder} to start again"
        ) from error
    if ours["steps"] > theirs.get("steps", 0):  # an extension
        theirs["steps"] = ours["steps"]
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise TrainError(
                f"{folder} holds a run with {name} = {theirs.get(name)}, this one has {value}; "
                "continue with the same settings, or with more steps, or choose another --out"
            )
