"""The exponential moving average of the trained weights (EMA), which then take their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class WeightAverage:
    """An average of the fp32 weights that the optimizer steps, also where the network is in half precision.

    After step n, counted from 0, it moves by 1 - min(``decay``, (1 + n) / (10 + n)) of the way to the
    weights: the first steps count less, so that a short training keeps little of its start (as in diffusers'
    ``EMAModel``). Every process has the whole average; after each step the processes exchange the parts that
    ZeRO divides among them.

    :param weights: the average of a checkpoint, to continue from
    """

    def __init__(self, engine: Any, decay: float, weights: list[Tensor] | None) -> None:
        self._engine = engine
        self._parameters = [p for p in engine.module.parameters() if p.requires_grad]
        self._decay = decay
        self.weights = (
            [self._stepped(p) for p in self._parameters]
            if weights is None
            else [weight.to(engine.device) for weight in weights]
        )

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step``; all processes must call this together."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for weight, parameter in zip(self.weights, self._parameters, strict=True):
            weight.lerp_(self._stepped(parameter), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """In the block, the network has the average in its own precision, and is in evaluation mode."""
        kept = [parameter.data for parameter in self._parameters]
        for weight, parameter in zip(self.weights, self._parameters, strict=True):
            parameter.data = weight.to(parameter.dtype)
        self._engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._engine.train()
            for data, parameter in zip(kept, self._parameters, strict=True):
                parameter.data = data

    @torch.no_grad()
    def replace(self, weights: list[Tensor] | None = None) -> None:
        """Put the average into the network, or an earlier one, in fp32. Training cannot go on after that."""
        for weight, parameter in zip(weights or self.weights, self._parameters, strict=True):
            parameter.data = weight

    def _stepped(self, parameter: Tensor) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param  # slow to import

        stepped: Tensor = safe_get_full_fp32_param(parameter)
        return stepped
