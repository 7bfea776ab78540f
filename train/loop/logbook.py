"""The log of a training: progress bar, ``losses.tsv``, ``held_out.tsv``, TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from realtime.atomic import write_whole
from train.loop.distributed import is_main_process

_BAR_MEAN_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """The figures of one optimizer step."""

    loss: float
    learning_rate: float
    gradient_norm: float
    """Before clipping; infinite where fp16 overflowed and the step was skipped."""
    examples_per_s: float


class Logbook:
    """The log of a run, written by the main process; in other processes it only keeps the losses.

    It starts with the losses of the checkpoint that training continues from. Later steps that were logged
    before an interruption are removed: ``losses.tsv`` is written again, and TensorBoard gets a purge step.
    """

    def __init__(self, folder: Path, losses: list[float], n_steps: int, name: str) -> None:
        self.losses = losses
        self._folder, self._name = folder, name
        self._writes = is_main_process()
        self._bar = tqdm(
            initial=len(losses), total=n_steps, desc=name, mininterval=2, disable=not self._writes
        )
        if self._writes:
            lines = "".join(_line(step, loss) for step, loss in enumerate(losses))
            (folder / "losses.tsv").write_text(lines)
            # Line by line, so that the file is complete even if the process is killed.
            self._table = (folder / "losses.tsv").open("a", buffering=1)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=len(losses), flush_secs=10)

    def __enter__(self) -> Logbook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._writes:
            self._table.close()
            self._board.close()

    def add(self, figures: StepFigures) -> None:
        """Log the next step."""
        step = len(self.losses)
        self.losses.append(figures.loss)
        if not self._writes:
            return
        self._table.write(_line(step, figures.loss))
        for name in ("loss", "learning_rate", "gradient_norm", "examples_per_s"):
            self._board.add_scalar(name, getattr(figures, name), step)
        if step % 20 == 0:
            self._bar.set_postfix(loss=f"{np.mean(self.losses[-_BAR_MEAN_STEPS:]):.4f}", refresh=False)
        self._bar.update()

    def measured(self, curve: Sequence[tuple[int, float]]) -> None:
        """Log the losses on held-out examples, of which the last is new."""
        if not self._writes:
            return
        write_whole(self._folder / "held_out.tsv", "".join(_line(*each) for each in curve))
        steps, loss = curve[-1]
        self._board.add_scalar("held_out_loss", loss, steps)
        self._bar.set_description(f"{self._name}, held out {loss:.4f}", refresh=False)

    def show(self, pictures: NDArray[np.uint8]) -> None:
        """Log pictures ``[n, H, W, 3]`` with the last step."""
        if self._writes:
            self._board.add_images("samples", pictures, len(self.losses) - 1, dataformats="NHWC")

    def flush(self) -> None:
        """Write everything to disk; called before a checkpoint is written."""
        if self._writes:
            self._board.flush()


def _line(step: int, loss: float) -> str:
    return f"{step}\t{loss:.9g}\n"
