"""Compares an engine with ONNX Runtime on the CPU: the outputs of every graph, and a whole picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import ExportError
from export.parity.differences import difference, psnr_db
from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Sampler
from realtime.decoding.decoder import Decoder, initial_noise
from realtime.decoding.engines.contract import Engine

LIMITS = {"float32": 1e-3, "float16": 2e-2}
"""Largest relative differences allowed. Both float16 results are within 1e-2 of float32."""
LEAST_PSNR_DB = 30.0

Arrays = dict[str, NDArray[Any]]


def worst_differences(bundle: Bundle, engine: Engine, reference: Engine) -> dict[str, dict[str, float]]:
    """Largest relative difference over all cases, by graph and output.

    :raises ExportError: an output exceeds its limit
    """
    worst: dict[str, dict[str, float]] = {}
    for graph, inputs, compared in _cases(bundle, reference):
        found, expected = _run(engine, graph, inputs), _run(reference, graph, inputs)
        figures = worst.setdefault(graph, dict.fromkeys(compared, 0.0))
        for name in compared:
            apart = difference(found[name], expected[name]).relative
            limit = LIMITS[bundle.spec.graphs[graph].precision]
            if not apart <= limit:  # also when it is NaN
                raise ExportError(
                    f"{graph}: expected {name} within {limit:g} of ONNX Runtime on the CPU, got {apart:.2e}; "
                    "no engine was written. Build again at a lower --optimization-level, or with another "
                    "release of TensorRT"
                )
            figures[name] = max(figures[name], apart)
    return worst


def picture_psnr_db(bundle: Bundle, engine: Engine, reference: Engine) -> float:
    """PSNR of a picture that is decoded with the bundle's shortest sampler.

    :raises ExportError: it is too small
    """
    sampler = min(bundle.spec.samplers, key=lambda sampler: len(sampler.timesteps))
    window = initial_noise((bundle.spec.roi.n_voxels, bundle.decoder().window.length_volumes), seed=1)
    images = [Decoder(bundle, each).decode(window, sampler).image for each in (engine, reference)]
    psnr = psnr_db(*images)
    if psnr < LEAST_PSNR_DB:
        raise ExportError(
            f"expected a picture of at least {LEAST_PSNR_DB:g} dB PSNR against ONNX Runtime on the CPU, got "
            f"{psnr:.1f}; no engine was written"
        )
    return psnr


def _cases(bundle: Bundle, reference: Engine) -> Iterator[tuple[str, Arrays, tuple[str, ...]]]:
    """Each graph with inputs, and the names of the outputs to compare.

    For ``denoise`` only the next latents are compared, at three steps, with and without guidance: at a noisy
    step its prediction contains the error of the noise enlarged many times.
    """
    shape = (1, *bundle.spec.latent_shape)
    seen: set[str] = set()
    for decoder in bundle.spec.decoders:
        window = initial_noise((1, bundle.spec.roi.n_voxels, decoder.window.length_volumes), seed=1)
        outputs = _run(reference, decoder.graph, {"window": window})
        yield decoder.graph, {"window": window}, tuple(outputs)
        if decoder.denoise not in seen:
            conditions = np.concatenate([bundle.null_conditions[decoder.name][None], outputs["condition"]])
            for inputs in _steps(bundle.sampler(), conditions, shape):
                yield decoder.denoise, inputs, ("next",)
        seen.add(decoder.denoise)
    yield "vae", {"latents": initial_noise(shape, seed=4)}, ("image",)


def _steps(sampler: Sampler, conditions: NDArray[Any], shape: tuple[int, ...]) -> Iterator[Arrays]:
    """Inputs of ``denoise`` at a sampler's first, middle and last step, with and without guidance."""
    for step in (0, len(sampler.timesteps) // 2, len(sampler.timesteps) - 1):
        for weights in ([-2.0, 3.0], [1.0]):
            yield {
                "latents": initial_noise(shape, seed=2 + step),
                "previous": initial_noise(shape, seed=3 + step),
                "timestep": np.array([sampler.timesteps[step]], dtype=np.int64),
                "conditions": conditions[-len(weights) :],
                "weights": np.array(weights, dtype=np.float32),
                "coefficients": np.array(sampler.coefficients[step], dtype=np.float32),
            }


def _run(engine: Engine, graph: str, inputs: Arrays) -> Arrays:
    outputs = engine.run(graph, {name: engine.put(array) for name, array in inputs.items()})
    return {name: engine.get(tensor) for name, tensor in outputs.items()}
