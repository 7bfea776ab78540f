"""The loss on held-out examples while a training goes on, and whether it still falls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from train.loop.average import WeightAverage
from train.loop.distributed import decided_by_main
from train.recipe import Plateau

Curve = list[tuple[int, float]]
"""Steps taken, and the loss on held-out examples after them; in ascending order, from step 0 on."""


def reached(curve: Sequence[tuple[int, float]], settings: Plateau) -> bool:
    """Whether a plateau is reached: the last measurements gained little on those before them, and the loss
    does not fall now, as it may after a rise, from above what it was.

    Both falls, of the lowest loss so far and since the highest of the last measurements, are compared with
    the whole fall since the first step, and not with the loss, most of which no decoder can take away: noise
    cannot be predicted.
    """
    losses = [loss for _, loss in curve]
    if len(losses) <= settings.measurements:
        return False
    before = min(losses[: -settings.measurements])
    lowest = min(losses)
    recent = losses[-settings.measurements - 1 :]
    return max(before - lowest, max(recent) - recent[-1]) <= settings.fall * (losses[0] - lowest)


class HeldOut:
    """Measures the averaged weights on held-out examples, and keeps those with the lowest loss.

    :param loss: the loss of the network on examples, timesteps and noise that are always the same; called in
        the main process, with the network in evaluation mode
    """

    def __init__(self, settings: Plateau, loss: Callable[[], float]) -> None:
        self.settings = settings
        self.curve: Curve = []
        self.best: list[Tensor] = []
        self._loss = loss

    @property
    def reached(self) -> bool:
        """Whether the plateau is reached."""
        return reached(self.curve, self.settings)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"curve": self.curve, "best": self.best}

    def resume(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a checkpoint."""
        self.curve = [(step, loss) for step, loss in state["curve"]]
        self.best = [weight.to(device) for weight in state["best"]]

    def is_due(self, steps: int) -> bool:
        """Whether to measure after so many steps."""
        return steps % self.settings.every_steps == 0 and (not self.curve or self.curve[-1][0] < steps)

    def measure(self, steps: int, average: WeightAverage) -> None:
        """Measure the averaged weights after so many steps; all processes must call this together."""
        with average.in_place():
            loss = decided_by_main(self._loss)
        if not self.curve or loss < min(before for _, before in self.curve):
            self.best = [weight.clone() for weight in average.weights]
        self.curve.append((steps, loss))
