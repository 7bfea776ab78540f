"""How close each step stays to the one before, and the limits beyond which no bundle is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from export.errors import ExportError
from export.graphs import DenoiseGraph, Graph, Inputs
from export.onnxgraph import Arrays, Runner

IDENTICAL_DB = 100.0
"""PSNR of pictures that do not differ: a number, as JSON knows no infinity."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest differences; all but the last relative to the largest number of what is compared."""

    merged: float = 1e-4
    """LoRA merged against LoRA beside the weights."""
    onnx: float = 1e-4
    """ONNX Runtime against torch, both fp32."""
    stored: float = 1e-2
    """Weights stored as fp16 against fp32."""
    sampler: float = 1e-5
    """A sampler's table against diffusers' scheduler."""
    psnr_db: float = 30.0
    """Least PSNR of a picture of the bundle against the one by torch and diffusers, unmerged."""


def gate(step: str, parity: dict[str, float], limit: float) -> dict[str, float]:
    """The same figures, once none exceeds the limit.

    :raises ExportError: naming the step and the figure
    """
    for name, value in parity.items():
        if not value <= limit:  # also where it is not a number
            raise ExportError(
                f"{step}: expected {name} to stay within {limit:g} of the step before, got {value:.2e}; no "
                "bundle was written. Weights that are not finite, or a changed version of torch or "
                "onnxruntime, are the usual causes"
            )
    return parity


def gate_psnr(step: str, parity: dict[str, float], least_db: float) -> dict[str, float]:
    """The same figures, once none is below the least PSNR; raises as :func:`gate`."""
    for name, value in parity.items():
        if not value >= least_db:
            raise ExportError(
                f"{step}: expected a PSNR of at least {least_db:g} dB against torch's pictures, got "
                f"{value:.1f} dB for {name}; no bundle was written"
            )
    return parity


def compare(graph: Graph, first: Runner, second: Runner) -> dict[str, float]:
    """Largest difference over a graph's cases between two ways to run it, by what is compared."""
    worst: dict[str, float] = {}
    for case in graph.cases:
        found, expected = _comparable(graph, case, first(case)), _comparable(graph, case, second(case))
        for name in expected:
            error = _difference(found[name], expected[name])
            worst[name] = max(worst.get(name, 0.0), error) if error == error else error
    return worst


def psnr_db(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures."""
    mean_square = float(np.mean((found.astype(np.float64) - expected) ** 2))
    return min(IDENTICAL_DB, 10 * math.log10(255**2 / mean_square)) if mean_square else IDENTICAL_DB


def _comparable(graph: Graph, case: Inputs, outputs: Arrays) -> Arrays:
    """Outputs in a form whose errors matter alike at every timestep.

    The prediction of the clean latents at a noisy timestep is the predicted noise, many times enlarged, and
    hardly counts in the next latents: the noise is compared instead.
    """
    if not isinstance(graph.module, DenoiseGraph):
        return outputs
    timestep = case["timestep"]
    signal, noise = (_double(table[timestep]) for table in (graph.module.signal, graph.module.noise))
    predicted_noise = (_double(case["latents"]) - signal * outputs["prediction"]) / noise
    return {"next": outputs["next"], "noise": predicted_noise}


def _double(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.double().numpy()
    return array


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Relative to the largest number; of pictures, in levels of 255 beyond the one that rounding can flip."""
    apart = float(np.abs(found.astype(np.float64) - expected).max())
    if expected.dtype == np.uint8:
        return max(apart - 1, 0.0) / 255
    largest = float(np.abs(expected).max())
    return apart / largest if largest else apart
