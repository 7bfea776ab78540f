"""The engine contract: what runs a bundle's graphs, and which one is taken.

An engine keeps tensors where it computes. :meth:`Engine.put` and :meth:`Engine.get` are the only ways in and
out; between them the decoder hands opaque handles from one run to the next, so latents stay on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from realtime.bundle import Bundle, Spec, Tensor
from realtime.errors import EngineError

Handle = object
"""A tensor where its engine keeps it; means nothing outside that engine."""

ENGINES = ("auto", "onnxruntime-cuda", "onnxruntime-cpu")


class Engine(Protocol):
    """Runs the graphs of the bundle it was opened with. One thread at a time."""

    description: str
    """What runs, on what, for people: ``ONNX Runtime 1.31.1, CPU, 2 threads``."""

    def put(self, array: NDArray[Any]) -> Handle:
        """Bring an array to the device; it must not be changed afterwards."""

    def get(self, tensor: Handle) -> NDArray[Any]:
        """Bring a tensor back, once all that it depends on has been computed."""

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        """Run a graph on all its inputs by name; returns its outputs by name.

        :raises EngineError: when it fails
        """


def open_engine(bundle: Bundle, name: str = "auto", threads: int | None = None) -> Engine:
    """Load a bundle's graphs into an engine.

    :param name: one of ``ENGINES``; ``auto`` takes CUDA where a device answers, else the CPU
    :param threads: of the CPU; by default one per core this process may use
    :raises EngineError: when the engine is unknown or not to be had here, or a graph does not load
    """
    if name not in ENGINES:
        raise EngineError(f"expected an engine of {', '.join(ENGINES)}, got {name!r}")
    from realtime.engines import onnxruntime  # slow to import, and only one engine is needed

    return onnxruntime.open_engine(bundle, name, threads)


def signature(spec: Spec, graph: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs that a graph of a bundle must have; a named dimension is free.

    V voxels and T volumes into ``brain`` graphs, out of which come a condition and, where samplers start from
    them, latents; one sampler step in ``denoise``, whose ``n`` conditions are mixed by weights that sum to 1;
    latents to an image in ``vae``.
    """
    latents = (1, *spec.latent_shape)
    if graph == "denoise":
        return (
            _floats("latents", latents),
            _floats("previous", latents),
            Tensor(name="timestep", dtype="int64", shape=(1,)),
            _floats("conditions", ("n", *spec.condition_shape)),
            _floats("weights", ("n",)),
            _floats("coefficients", (3,)),
        ), (_floats("next", latents), _floats("prediction", latents))
    if graph == "vae":
        image = Tensor(name="image", dtype="uint8", shape=(*spec.image_size_px, 3))
        return (_floats("latents", latents),), (image,)
    for decoder in spec.decoders:
        if decoder.graph == graph:
            window = (1, spec.roi.n_voxels, decoder.window.length_volumes)
            condition = _floats("condition", (1, *spec.condition_shape))
            start = (_floats("start", latents),) if spec.starts_from_brain else ()
            return (_floats("window", window),), (condition, *start)
    raise EngineError(f"expected denoise, vae or a decoder's graph, got {graph!r}; export the bundle again")


def _floats(name: str, shape: tuple[int | str, ...]) -> Tensor:
    return Tensor(name=name, dtype="float32", shape=shape)
