"""Compares each step with the one before, and raises when a difference exceeds its limit."""

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
    """Largest allowed differences, relative to the largest number compared unless a field says otherwise."""

    merged: float = 1e-4
    """Merged LoRA against unmerged LoRA."""
    onnx: float = 1e-4
    """ONNX Runtime against torch, both fp32."""
    stored: float = 1e-2
    """fp16 weights, or fp16 arithmetic, against fp32."""
    sampler: float = 1e-5
    """A sampler's table against diffusers' scheduler."""
    psnr_db: float = 30.0
    """Smallest PSNR of a picture against that of torch and diffusers with unmerged LoRA."""
    identification: float = 0.01
    """Largest change of two-way identification, as a fraction, against the same decodes."""


def gate(step: str, parity: dict[str, float], limit: float) -> dict[str, float]:
    """Return the figures unchanged if none exceeds the limit.

    :raises ExportError: a figure exceeds the limit, or is NaN
    """
    for name, value in parity.items():
        if not value <= limit:  # also when it is NaN
            raise ExportError(
                f"{step}: expected {name} to stay within {limit:g} of the step before, got {value:.2e}; no "
                "bundle was written. Usual causes are weights that are not finite, or another version of "
                "torch or onnxruntime"
            )
    return parity


def gate_psnr(step: str, parity: dict[str, float], least_db: float) -> dict[str, float]:
    """Return the figures unchanged if no PSNR is too small; raises as :func:`gate`."""
    for name, value in parity.items():
        if not value >= least_db:
            raise ExportError(
                f"{step}: expected a PSNR of at least {least_db:g} dB against torch's pictures, got "
                f"{value:.1f} dB for {name}; no bundle was written"
            )
    return parity


def compare(graph: Graph, found: Sequence[Arrays], expected: Sequence[Arrays]) -> dict[str, Difference]:
    """Largest differences between two sets of outputs over a graph's cases, by name of the output."""
    worst: dict[str, Difference] = {}
    for case, ours, theirs in zip(graph.cases, found, expected, strict=True):
        ours, theirs = _comparable(graph, case, ours), _comparable(graph, case, theirs)
        for name in theirs:
            worst[name] = difference(ours[name], theirs[name]).or_worse(worst.get(name))
    return worst


def relative(differences: Mapping[str, Difference]) -> dict[str, float]:
    """The relative differences, to which limits apply."""
    return {name: each.relative for name, each in differences.items()}


def _comparable(graph: Graph, case: Inputs, outputs: Arrays) -> Arrays:
    """Outputs in a form in which errors are equally important at every timestep.

    At a noisy timestep, the prediction of the clean latents contains the predicted noise enlarged many times,
    although it hardly affects the next latents. The noise is therefore compared instead.
    """
    if not isinstance(graph.module, DenoiseGraph):
        return outputs
    # The tables are not part of the network, so they remain when its weights have been released.
    timestep = case["timestep"]
    signal, noise = (_double(table[timestep]) for table in (graph.module.signal, graph.module.noise))
    predicted_noise = (_double(case["latents"]) - signal * outputs["prediction"]) / noise
    return {"next": outputs["next"], "noise": predicted_noise}


def _double(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.double().numpy()
    return array
