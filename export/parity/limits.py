"""How close each step stays to the one before, and the limits beyond which no bundle is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from export.errors import ExportError
from export.graphs.graphs import DenoiseGraph, Graph, Inputs
from export.graphs.onnx_model import Arrays
from export.parity.differences import Difference, difference


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest differences; all but the last relative to the largest number of what is compared."""

    merged: float = 1e-4
    """LoRA merged against LoRA beside the weights."""
    onnx: float = 1e-4
    """ONNX Runtime against torch, both fp32."""
    stored: float = 1e-2
    """fp16, of weights alone or of the network's arithmetic, against fp32."""
    sampler: float = 1e-5
    """A sampler's table against diffusers' scheduler."""
    psnr_db: float = 30.0
    """Least PSNR of a picture against the one by torch and diffusers, unmerged."""
    identification: float = 0.01
    """Largest change of two-way identification, as a share of 1, against torch and diffusers, unmerged."""


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


def compare(graph: Graph, found: Sequence[Arrays], expected: Sequence[Arrays]) -> dict[str, Difference]:
    """Largest differences over the outputs of a graph's cases, by what is compared."""
    worst: dict[str, Difference] = {}
    for case, ours, theirs in zip(graph.cases, found, expected, strict=True):
        ours, theirs = _comparable(graph, case, ours), _comparable(graph, case, theirs)
        for name in theirs:
            worst[name] = difference(ours[name], theirs[name]).or_worse(worst.get(name))
    return worst


def relative(differences: Mapping[str, Difference]) -> dict[str, float]:
    """The relative ones, which limits are about."""
    return {name: each.relative for name, each in differences.items()}


def _comparable(graph: Graph, case: Inputs, outputs: Arrays) -> Arrays:
    """Outputs in a form whose errors matter alike at every timestep.

    The prediction of the clean latents at a noisy timestep is the predicted noise, many times enlarged, and
    hardly counts in the next latents: the noise is compared instead.
    """
    if not isinstance(graph.module, DenoiseGraph):
        return outputs
    # The tables are no part of the network: they are there after its weights were released.
    timestep = case["timestep"]
    signal, noise = (_double(table[timestep]) for table in (graph.module.signal, graph.module.noise))
    predicted_noise = (_double(case["latents"]) - signal * outputs["prediction"]) / noise
    return {"next": outputs["next"], "noise": predicted_noise}


def _double(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.double().numpy()
    return array
