"""A training small enough to be started many times, in a test or (as a script) in processes of its own."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.loop.loop import fit
from train.model.batch import Batch
from train.recipe import Training

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


class Line(nn.Module):
    """Least squares through dropout, so that a step's randomness shows in its loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = nn.Linear(6, 1)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, batch: Batch) -> Tensor:
        x = nn.functional.dropout(batch["x"].to(self.layer.weight.dtype), 0.5)
        loss: Tensor = (self.layer(x) - batch["x"].sum(1, keepdim=True)).square().mean()
        return loss


def batch_of(indices: NDArray[np.int64]) -> Batch:
    return {"x": X[indices]}


def training(steps: int = 30, batch: int = 16, micro_batch: int = 8, precision: str = "fp32") -> Training:
    return Training(
        steps=steps,
        batch=batch,
        micro_batch=micro_batch,
        peak_learning_rate=0.1,
        warmup_steps=5,
        precision=precision,  # type: ignore[arg-type]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--save-every-s", type=float, default=1e9)
    parser.add_argument("--step-s", type=float, default=0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--local_rank", type=int)
    options = parser.parse_args()

    def slow_batch_of(indices: NDArray[np.int64]) -> Batch:
        time.sleep(options.step_s)
        return batch_of(indices)

    try:
        fit(
            Line(),
            slow_batch_of,
            len(X),
            training(options.steps),
            folder=options.folder,
            seed=3,
            name="line",
            save_every_s=options.save_every_s,
        )
    except KeyboardInterrupt:
        sys.stdout.write(f"process {os.environ.get('RANK', 0)} was asked to stop\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
