"""The engine contract, and the line of engines from which one is taken.

An engine keeps tensors where it computes. :meth:`Engine.put` and :meth:`Engine.get` are the only ways in and
out; between them the decoder hands opaque handles from one run to the next, so latents stay on the device.

Each engine is a module of this package, an :class:`EngineModule`; it may import a library that is not
installed. ``auto`` tries the engines of ``LINE`` in order and never passes one over in silence: the reasons
are logged and stand in the description of the engine that is taken.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from numpy.typing import NDArray

from realtime.bundle import Bundle, Spec, Tensor
from realtime.engines.weights import locations
from realtime.errors import EngineError

T = TypeVar("T")
Handle = object
"""A tensor where its engine keeps it; means nothing outside that engine."""

_MODULES = {
    "tensorrt": "realtime.engines.tensorrt",
    "onnxruntime-cuda": "realtime.engines.onnxruntime_cuda",
    "openvino": "realtime.engines.openvino",
    "openvino-bf16": "realtime.engines.openvino",
    "onnxruntime-cpu": "realtime.engines.onnxruntime",
}
_INSTALL = {
    "tensorrt": "pip install tensorrt cuda-bindings",
    "onnxruntime-cuda": "pip install onnxruntime-gpu",
    "openvino": "pip install 'realtime-dynadiff[openvino]'",
    "openvino-bf16": "pip install 'realtime-dynadiff[openvino]'",
    "onnxruntime-cpu": "pip install onnxruntime",
}
LINE = ("tensorrt", "onnxruntime-cuda", "openvino", "onnxruntime-cpu")
"""What ``auto`` tries, in this order; of the CPU's two the faster first (``benchmarks/cpu_engines.py``)."""
ENGINES = ("auto", *_MODULES)

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """Runs the graphs of the bundle it was opened with, on the thread that opened it: ONNX Runtime keeps what
    it records of CUDA's by thread.
    """

    description: str
    """What runs, on what, for people: ``ONNX Runtime 1.31.1, CPU, 2 threads``."""

    def put(self, array: NDArray[Any]) -> Handle:
        """Bring an array to the device; it must not be changed afterwards."""

    def get(self, tensor: Handle) -> NDArray[Any]:
        """Bring a tensor back, once all that it depends on has been computed."""

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        """Run a graph on all its inputs by name; returns its outputs by name.

        They may be inputs of any run, and may be overwritten once the same graph has run again.

        :raises EngineError: when it fails
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One row of a sampler's table, on the device."""

    timestep: Handle
    """int64 [1]"""
    coefficients: Handle
    """[3]"""
    weights: Handle
    """[2] of the null condition and the other one, or [1] of the latter alone."""
    is_guided: bool


Steps = tuple[Step, ...]
"""A sampler's table; as a key it is itself and no other."""


@runtime_checkable
class LoopEngine(Engine, Protocol):
    """An engine that runs all steps of a table in one go. Others are led through them one by one."""

    def sample(self, graph: str, steps: Steps, conditions: NDArray[Any], latents: Handle) -> Handle:
        """Run a ``denoise`` graph once a step, from latents ``[1, c, h, w]`` to the last ones; what it
        prepares for a table it keeps, so that only the first call is slow.

        :param conditions: the null condition and the other one, ``[2, tokens, width]``
        :raises EngineError: when it fails
        """


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An engine and whether it can run a bundle on this machine."""

    name: str
    reason: str = ""
    """Why it cannot, and what to do about it; empty where it can."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the libraries that were found, by name."""

    @property
    def available(self) -> bool:
        """Whether it can run here, as far as can be told without loading a graph."""
        return not self.reason


class EngineModule(Protocol):
    """What a module of this package offers; it is imported only when one of its engines is asked for."""

    def probe(self, bundle: Bundle, name: str) -> Candidate:
        """Say whether the engine ``name`` can run the bundle here. Quick, and loads no graph."""

    def open_engine(self, bundle: Bundle, name: str, threads: int | None) -> Engine:
        """Load the bundle's graphs; raises as :func:`open_engine` of this package."""


def probe(bundle: Bundle, name: str) -> Candidate:
    """Whether one of the engines of ``LINE`` can run a bundle here, and if not, why."""
    try:
        return _module(name).probe(bundle, name)
    except EngineError as error:
        return Candidate(name=name, reason=str(error))


def open_engine(bundle: Bundle, name: str = "auto", threads: int | None = None) -> Engine:
    """Load a bundle's graphs into an engine.

    :param name: one of ``ENGINES``; ``auto`` takes the first of ``LINE`` that opens
    :param threads: of the CPU; by default one per core this process may use
    :raises EngineError: when the engine is unknown or not to be had here, or a graph does not load
    """
    return take_engine(bundle, name, threads)[1]


def take_engine(bundle: Bundle, name: str = "auto", threads: int | None = None) -> tuple[str, Engine]:
    """As :func:`open_engine`; also says which of ``ENGINES`` it is."""
    return put_to_use(bundle, name, lambda engine: None, threads)[:2]


def put_to_use(
    bundle: Bundle, name: str, use: Callable[[Engine], T], threads: int | None = None
) -> tuple[str, Engine, T]:
    """Load a bundle's graphs and do with them what they are wanted for; also returns what came of it.

    :param name: as for :func:`open_engine`; with ``auto``, an engine that loads and then fails in use is
        passed over like one that does not load
    :raises EngineError: as :func:`open_engine`, and when the use fails
    """
    if name not in ENGINES:
        raise EngineError(f"expected an engine of {', '.join(ENGINES)}, got {name!r}")
    if name != "auto":
        return name, *_open_and_use(bundle, name, use, threads)
    passed_over: list[str] = []
    for name in LINE:
        try:
            engine, used = _open_and_use(bundle, name, use, threads)
        except EngineError as error:
            _log.info("engine %s is passed over: %s", name, error)
            passed_over.append(f"{name}: {error}")
            continue
        if passed_over:
            engine.description += f" (passed over: {'; '.join(passed_over)})"
        return name, engine, used
    raise EngineError(f"expected an engine that runs this bundle here, found none: {'; '.join(passed_over)}")


def _open_and_use(
    bundle: Bundle, name: str, use: Callable[[Engine], T], threads: int | None
) -> tuple[Engine, T]:
    """In a frame of its own, so that nothing holds an engine that failed when the next one is loaded."""
    engine = _open(bundle, name, threads)
    return engine, use(engine)


def _open(bundle: Bundle, name: str, threads: int | None) -> Engine:
    candidate = probe(bundle, name)
    if not candidate.available:
        raise EngineError(candidate.reason)
    return _module(name).open_engine(bundle, name, threads)


def _module(name: str) -> EngineModule:
    """The module of an engine, which may need a library that is not there."""
    try:
        return cast(EngineModule, importlib.import_module(_MODULES[name]))
    except (ImportError, OSError) as error:  # OSError: a library of its own that does not load
        raise EngineError(f"its library is not to be had: {error}; {_INSTALL[name]}") from error


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def counted(number: int, what: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def signature(spec: Spec, graph: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs that a graph of a bundle must have; a named dimension is free.

    V voxels and T volumes into ``brain`` graphs, out of which come a condition and, where samplers start from
    them, latents; one sampler step in ``denoise`` graphs; latents to an image in ``vae``.

    The noises under each of the ``n`` conditions of a step are mixed by weights that sum to 1, and both
    outputs are affine in the mixture: an engine may run the graph for each condition alone and mix what comes
    out.
    """
    latents = (1, *spec.latent_shape)
    if graph in {decoder.denoise for decoder in spec.decoders}:
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
    raise EngineError(f"expected vae or a decoder's graph, got {graph!r}; export the bundle again")


def forms(spec: Spec, graph: str) -> list[dict[str, tuple[int, ...]]]:
    """Shapes of a graph's inputs, by name, for each number n of conditions that the samplers use."""
    inputs, _ = signature(spec, graph)
    if all(isinstance(size, int) for tensor in inputs for size in tensor.shape):
        numbers = {1}
    else:
        numbers = {1 if guidance == 1 else 2 for sampler in spec.samplers for guidance in sampler.guidance}
    return [
        {t.name: tuple(size if isinstance(size, int) else n for size in t.shape) for t in inputs}
        for n in sorted(numbers)
    ]


def check_graph(
    bundle: Bundle,
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    n: int | None = None,
) -> None:
    """See that a loaded graph takes and gives what :func:`signature` says; its free dimensions fit any.

    Its weights must lie in files whose digests the bundle knows.

    :param n: to which the number of conditions was fixed while loading, if it was
    :raises EngineError: naming the file, what was expected and what was found
    """
    path = bundle.graph_path(name)
    try:
        unlisted = sorted(locations(path) - set(bundle.spec.files))
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: expected an ONNX graph: {error}; export the bundle again") from error
    if unlisted:
        raise EngineError(
            f"{path}: expected weights in files that bundle.json lists, found some in {', '.join(unlisted)}; "
            "export the bundle again"
        )
    for what, expected, found in zip(
        ("inputs", "outputs"), signature(bundle.spec, name), (inputs, outputs), strict=True
    ):
        wanted = {
            tensor.name: (tensor.dtype, tuple(n if n and size == "n" else size for size in tensor.shape))
            for tensor in expected
        }
        got = {tensor.name: (tensor.dtype, tensor.shape) for tensor in found}
        if not (wanted.keys() == got.keys() and all(_fits(wanted[key], got[key]) for key in wanted)):
            raise EngineError(f"{path}: {what}: expected {wanted}, found {got}; export the bundle again")


_Form = tuple[str, tuple[int | str, ...]]


def _fits(wanted: _Form, got: _Form) -> bool:
    (dtype, sizes), (got_dtype, got_sizes) = wanted, got
    if dtype != got_dtype or len(sizes) != len(got_sizes):
        return False
    return all(not isinstance(b, int) or a == b for a, b in zip(sizes, got_sizes, strict=True))


def _floats(name: str, shape: tuple[int | str, ...]) -> Tensor:
    return Tensor(name=name, dtype="float32", shape=shape)
