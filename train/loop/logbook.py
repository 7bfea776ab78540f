"""What a training run tells while it runs: progress bar, ``losses.tsv``, TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from train.loop.distributed import is_main_process

_BAR_MEAN_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """What is known of one optimizer step."""

    loss: float
    learning_rate: float
    gradient_norm: float
    """Before clipping; infinite where fp16 overflowed and the step was skipped."""
    examples_per_s: float


class Logbook:
    """The record of a run, written by the main process; in the others it only remembers losses.

    Opened with the losses of the checkpoint that training goes on from: what was written behind it is taken
    back, in ``losses.tsv`` by writing it anew and in TensorBoard by its purge step, so no step stands twice.
    """

    def __init__(self, folder: Path, losses: list[float], n_steps: int, name: str) -> None:
        self.losses = losses
        self._writes = is_main_process()
        self._bar = tqdm(
            initial=len(losses), total=n_steps, desc=name, mininterval=2, disable=not self._writes
        )
        if self._writes:
            lines = "".join(_line(step, loss) for step, loss in enumerate(losses))
            (folder / "losses.tsv").write_text(lines)
            # By lines, so that even a killed process leaves what it knew.
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
        """Note the next step."""
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

    def show(self, pictures: NDArray[np.uint8]) -> None:
        """Put pictures ``[n, H, W, 3]`` beside the last step."""
        if self._writes:
            self._board.add_images("samples", pictures, len(self.losses) - 1, dataformats="NHWC")

    def flush(self) -> None:
        """Before a checkpoint is written: all that lies behind it is on disk."""
        if self._writes:
            self._board.flush()


def _line(step: int, loss: float) -> str:
    return f"{step}\t{loss:.9g}\n"
