"""The training loop: progress, checkpoints and exact resume, in one process or several.

An objective is a module that takes a batch and returns its loss. A micro-batch's examples, noise, timesteps
and dropout depend only on the seed and on its number. An interrupted run therefore continues with the same
losses, and two processes have the losses of one process that accumulates twice as many micro-batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from train.errors import TrainError
from train.loop.average import WeightAverage
from train.loop.deepspeed_engine import resume, save, start_engine
from train.loop.distributed import StopRequest, is_main_process
from train.loop.logbook import Logbook, StepFigures
from train.loop.plateau import HeldOut
from train.model.batch import Batch
from train.recipe import Training

Pictures = NDArray[np.uint8]


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
    sample: Callable[[], Pictures] | None = None,
    sample_every_steps: int = 500,
    held_out: HeldOut | None = None,
) -> list[float]:
    """Train ``objective`` in place; return the loss of every step, including those before an interruption.

    Checkpoints, ``losses.tsv`` and TensorBoard's files are written to ``folder``. If it holds a checkpoint,
    training continues from there. With ``ema_decay``, ``objective`` has the weights' average at the end;
    TensorBoard's pictures are by the weights of their step.

    With ``held_out``, training ends at its plateau, if that comes before ``steps``; ``objective`` then has
    the average whose loss was the lowest.

    If ``folder`` holds a training of fewer steps, it is extended: see :mod:`train.loop.deepspeed_engine`.

    :param batch_of: turns indices of examples into a batch
    :param sample: makes pictures uint8 ``[n, H, W, 3]`` for TensorBoard; called in the main process with the
        objective in evaluation mode. Its random numbers do not affect training.
    :raises TrainError: loss or gradients are no longer finite (the last checkpoint stays), the batch does not
        divide over the processes, or ``folder`` holds a checkpoint of another run
    :raises KeyboardInterrupt: after Ctrl-C or SIGTERM, when the step is finished and saved
    """
    engine = start_engine(objective, training)
    state = resume(engine, folder, training, seed)
    losses: list[float] = list(state.get("losses", ()))
    average = WeightAverage(engine, training.ema_decay, state.get("average")) if training.ema_decay else None
    if held_out and "held_out" in state:
        held_out.resume(state["held_out"], engine.device)
    steps = _Steps(engine=engine, batch_of=batch_of, n_examples=n_examples, training=training, seed=seed)
    saved_at = time.monotonic()
    with Logbook(folder, losses, training.steps, name) as logbook, StopRequest() as stop:
        if held_out and average and not held_out.curve:
            held_out.measure(0, average)
            logbook.measured(held_out.curve)
        while len(losses) < training.steps and not (held_out and held_out.reached):
            step = len(losses)
            due = is_main_process() and time.monotonic() - saved_at > save_every_s
            figures, stops, saves = steps.take(step, stop, due)
            logbook.add(figures)
            if average:
                average.update(step)
                if held_out and held_out.is_due(step + 1):
                    held_out.measure(step + 1, average)
                    logbook.measured(held_out.curve)
            if sample and (step + 1) % sample_every_steps == 0 and is_main_process():
                logbook.show(_draw(engine, sample))
            if stops or saves or step + 1 == training.steps or (held_out and held_out.reached):
                logbook.flush()
                save(engine, folder, _state(losses, average, held_out))
                saved_at = time.monotonic()
            if stops:
                raise KeyboardInterrupt
    if average:
        average.replace(held_out.best if held_out else None)
    return losses


def _state(losses: list[float], average: WeightAverage | None, held_out: HeldOut | None) -> dict[str, Any]:
    state: dict[str, Any] = {"losses": losses}
    if average:
        state["average"] = average.weights
    if held_out:
        state["held_out"] = held_out.state
    return state


def batch_indices(seed: int, number: int, size: int, n_examples: int) -> NDArray[np.int64]:
    """Indices of a micro-batch's examples: a permutation per epoch, a pure function of seed and number."""
    positions = np.arange(number * size, (number + 1) * size)
    epochs = positions // n_examples
    chosen = np.empty(size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([seed, int(epoch)]).permutation(n_examples)
        here = epochs == epoch
        chosen[here] = order[positions[here] % n_examples]
    return chosen


def noise_seed(seed: int, number: int) -> int:
    """Seed of a micro-batch's noise: 32 bits, because torch's CPU generator uses no more."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


@dataclass(frozen=True, kw_only=True)
class _Steps:
    engine: Any
    batch_of: Callable[[NDArray[np.int64]], Batch]
    n_examples: int
    training: Training
    seed: int

    def take(self, step: int, stop: StopRequest, due: bool) -> tuple[StepFigures, bool, bool]:
        """Take one optimizer step; return its figures, whether any process must stop, and whether to save."""
        begun = time.perf_counter()
        engine, accumulation = self.engine, self.training.accumulation(self.engine.world_size)
        learning_rate = float(engine.get_lr()[0])
        loss = torch.zeros((), dtype=torch.float64, device=engine.device)
        for part in range(accumulation):
            number = (step * accumulation + part) * engine.world_size + engine.global_rank
            loss += self._backward(number) / (accumulation * engine.world_size)
            if part < accumulation - 1:
                engine.step()
        # One exchange per step, so that all processes agree and none waits for one that has stopped.
        shared = torch.stack([loss, loss.new_tensor(stop.made), loss.new_tensor(due)])
        dist.all_reduce(shared)
        mean, stops, saves = shared.tolist()
        if not math.isfinite(mean):
            raise self._not_finite("loss", mean, step)
        engine.step()
        self._check_gradients(step)
        figures = StepFigures(
            loss=mean,
            learning_rate=learning_rate,
            gradient_norm=float(engine.get_global_grad_norm()),
            examples_per_s=self.training.batch / (time.perf_counter() - begun),
        )
        return figures, stops > 0, saves > 0

    def _backward(self, number: int) -> Tensor:
        training, engine = self.training, self.engine
        indices = batch_indices(self.seed, number, training.micro_batch, self.n_examples)
        batch = {key: value.to(engine.device) for key, value in self.batch_of(indices).items()}
        torch.manual_seed(noise_seed(self.seed, number))
        loss: Tensor = engine(batch)
        engine.backward(loss)
        return loss.detach()

    def _check_gradients(self, step: int) -> None:
        """Raise where DeepSpeed skipped a step because gradients overflowed, unless fp16 adapts its scale."""
        optimizer = self.engine.optimizer
        if not optimizer.overflow:
            return
        if not self.engine.fp16_enabled():
            raise self._not_finite("gradient", float(self.engine.get_global_grad_norm()), step)
        scaler = optimizer.loss_scaler
        if scaler.cur_scale <= scaler.min_scale:
            raise self._not_finite("gradient at the smallest loss scale", float("inf"), step)

    def _not_finite(self, what: str, value: float, step: int) -> TrainError:
        return TrainError(
            f"expected a finite {what}, got {value} at step {step}; the last checkpoint is unchanged. Lower "
            'peak_learning_rate or choose another precision ("fp32" avoids overflow), with another --out'
        )


def _draw(engine: Any, sample: Callable[[], Pictures]) -> Pictures:
    engine.eval()
    try:
        # Every micro-batch sets its own seed, so random numbers drawn here do not affect training.
        with torch.no_grad():
            return sample()
    finally:
        engine.train()
