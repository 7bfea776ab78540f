"""TensorRT engine: runs plans that ``python -m export engines`` built on this machine.

Every graph has one execution context per number of conditions, with fixed shapes, inputs and outputs. The
steps of a sampler's table are recorded as one CUDA graph; latents stay on the device between steps.

Uses only the API common to TensorRT 10.12 and 11.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
from numpy.typing import NDArray

from realtime.bundle.bundle import Bundle
from realtime.decoding.engines.contract import Candidate, Engine, Handle, Steps
from realtime.decoding.engines.cuda import DeviceArray, Stream, first_device
from realtime.decoding.engines.plans import Record, check_plans, digest, find_plans, rebuild
from realtime.decoding.engines.signature import signature
from realtime.errors import EngineError

MOST_CONDITIONS = 2
"""Guidance needs two: the null condition and the decoded one."""

_UNRECORDED = ", step by step"
_log = logging.getLogger(__name__)
_SEVERITIES = {
    trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
    trt.ILogger.Severity.ERROR: logging.ERROR,
    trt.ILogger.Severity.WARNING: logging.WARNING,
}


def probe(bundle: Bundle, name: str) -> Candidate:
    """Implement :meth:`realtime.decoding.engines.contract.EngineModule.probe`."""
    versions = {"tensorrt": str(trt.__version__)}
    try:
        _record(bundle)
    except EngineError as error:
        return Candidate(name=name, reason=str(error), versions=versions)
    return Candidate(name=name, versions=versions)


def open_engine(bundle: Bundle, name: str, threads: int | None) -> Engine:
    """Implement :meth:`realtime.decoding.engines.contract.EngineModule.open_engine`; ignores ``threads``."""
    record = _record(bundle)
    engine = TensorRtEngine(bundle, check_plans(bundle, record))
    engine.description += f", plans {digest(record)}"
    return engine


def _record(bundle: Bundle) -> Record:
    """Return the record of the plans for this machine. :raises EngineError: when there are none"""
    device = first_device()
    return find_plans(bundle, trt.__version__, device.sm, device.name)


class TensorRtEngine:
    """Runs the graphs of a bundle as TensorRT engines on the first CUDA device.

    :param plans: plan files by graph
    :raises EngineError: when a plan does not load, does not run or does not match the bundle
    """

    def __init__(self, bundle: Bundle, plans: Mapping[str, Path]) -> None:
        device = first_device()
        self.description = f"TensorRT {trt.__version__}, {device.name}"
        self._stream = Stream()
        try:
            self._runtime = trt.Runtime(_Logger())
        except TypeError as error:  # pybind11's, where TensorRT returns no object
            raise EngineError(
                f"TensorRT {trt.__version__} does not start on {device.name}: {error}; check the driver with "
                "nvidia-smi"
            ) from error
        self._bound: dict[tuple[str, int], _BoundGraph] = {}
        for graph, path in plans.items():
            self._load(bundle, graph, path)
        latents = (1, *bundle.spec.latent_shape)
        self._latents = self._stream.allocate(latents, np.float32)
        self._no_previous = self._put(np.zeros(latents, dtype=np.float32))
        self._loops: dict[tuple[str, Steps], Callable[[], None]] = {}

    def put(self, array: NDArray[Any]) -> Handle:
        """Copy an array to the device."""
        return self._put(array)

    def get(self, tensor: Handle) -> NDArray[Any]:
        """Copy a tensor to an array on the host."""
        return self._stream.download(_device_array(tensor))

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        """Run a graph; its outputs stay on the device.

        :raises EngineError: when the inputs are wrong or the run fails
        """
        tensors = {name: _device_array(tensor) for name, tensor in inputs.items()}
        free = tensors["conditions"].shape[0] if "conditions" in tensors else 1
        bound = self._bound.get((graph, free))
        if bound is None or tensors.keys() != bound.inputs.keys():
            raise EngineError(
                f"expected a graph of the bundle with its inputs and 1 to {MOST_CONDITIONS} conditions, got "
                f"{graph} with {free} conditions and inputs {', '.join(tensors)}"
            )
        for name, tensor in tensors.items():
            self._feed(bound, name, tensor)
        bound.enqueue()
        return {name: self._stream.duplicate(tensor) for name, tensor in bound.outputs.items()}

    def sample(self, graph: str, steps: Steps, conditions: NDArray[Any], latents: Handle) -> Handle:
        """Implement :meth:`realtime.decoding.engines.contract.LoopEngine.sample` with a single launch."""
        for n in range(1, MOST_CONDITIONS + 1):
            self._stream.upload(conditions[-n:], self._bound[graph, n].inputs["conditions"])
        loop = self._loops.get((graph, steps)) or self._prepare(graph, steps)
        self._stream.copy(_device_array(latents), self._latents)
        loop()
        final = self._stream.duplicate(self._latents)
        self._stream.synchronize()  # so that the caller's timing includes the computation
        return final

    def _prepare(self, graph: str, steps: Steps) -> Callable[[], None]:
        """Run a table once, because TensorRT defers work to the first run, then record it as a CUDA graph."""
        queue = partial(self._queue, graph, steps)
        queue()
        self._stream.synchronize()
        try:
            self._loops[graph, steps] = partial(self._stream.capture(queue).launch, self._stream)
        except EngineError as error:
            _log.warning(
                "a sampler runs step by step, because it cannot be recorded as a CUDA graph: %s", str(error)
            )
            if not self.description.endswith(_UNRECORDED):
                self.description += _UNRECORDED
            self._loops[graph, steps] = queue
        return self._loops[graph, steps]

    def _queue(self, graph: str, steps: Steps) -> None:
        """Queue a table's steps; ``self._latents`` holds the initial and then the final latents."""
        latents, previous = self._latents, self._no_previous
        for step in steps:
            bound = self._bound[graph, 2 if step.is_guided else 1]
            self._feed(bound, "latents", latents)
            self._feed(bound, "previous", previous)
            self._feed(bound, "timestep", _device_array(step.timestep))
            self._feed(bound, "weights", _device_array(step.weights))
            self._feed(bound, "coefficients", _device_array(step.coefficients))
            bound.enqueue()
            latents, previous = bound.outputs["next"], bound.outputs["prediction"]
        self._stream.copy(latents, self._latents)

    def _put(self, array: NDArray[Any]) -> DeviceArray:
        tensor = self._stream.allocate(array.shape, array.dtype)
        self._stream.upload(array, tensor)
        return tensor

    def _feed(self, bound: _BoundGraph, name: str, tensor: DeviceArray) -> None:
        to = bound.inputs[name]
        if (tensor.shape, tensor.dtype) != (to.shape, to.dtype):
            raise EngineError(
                f"{bound.graph} failed on {self.description}: expected {name} of {to.dtype} {to.shape}, got "
                f"{tensor.dtype} {tensor.shape}"
            )
        self._stream.copy(tensor, to)

    def _load(self, bundle: Bundle, graph: str, path: Path) -> None:
        """Load a plan and bind it for every number of conditions it supports."""
        try:
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        except OSError as error:
            raise EngineError(f"{path}: cannot be read: {error.strerror}; {rebuild(bundle)}") from error
        if engine is None:
            raise EngineError(
                f"{path}: expected a plan that TensorRT {trt.__version__} loads here; see the log for its "
                f"errors; {rebuild(bundle)}"
            )
        _check_signature(bundle, graph, path, engine)
        is_denoise = graph in {decoder.denoise for decoder in bundle.spec.decoders}
        for n in range(1, MOST_CONDITIONS + 1) if is_denoise else (1,):
            self._bound[graph, n] = _BoundGraph(bundle, graph, engine, n, self._stream)


class _BoundGraph:
    """A graph with fixed shapes: an execution context and the memory of its inputs and outputs."""

    def __init__(self, bundle: Bundle, graph: str, engine: Any, n: int, stream: Stream) -> None:
        self.graph, self._stream = graph, stream
        self._engine = engine  # must outlive its contexts
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError(
                f"{graph}: expected enough memory on the device for an execution context; see the log for "
                "TensorRT's errors. End other programs on the device, or use another engine"
            )
        inputs, outputs = signature(bundle.spec, graph)
        for tensor in inputs:
            shape = tuple(size if isinstance(size, int) else n for size in tensor.shape)
            self._require(self._context.set_input_shape(tensor.name, shape), f"accepts {tensor.name} {shape}")
        self.inputs = {tensor.name: self._bind(tensor.name) for tensor in inputs}
        self.outputs = {tensor.name: self._bind(tensor.name) for tensor in outputs}

    def enqueue(self) -> None:
        """Queue one run."""
        self._require(self._context.execute_async_v3(int(self._stream.handle)), "runs")

    def _bind(self, name: str) -> DeviceArray:
        shape = tuple(self._context.get_tensor_shape(name))
        memory = self._stream.allocate(shape, trt.nptype(self._engine.get_tensor_dtype(name)))
        self._require(self._context.set_tensor_address(name, memory.address), f"accepts memory for {name}")
        return memory

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(
                f"{self.graph}: expected that TensorRT {what}, it did not; the log has its reason. Build its "
                "engines again (`python -m export engines`), or use another engine"
            )


class _Logger(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types
    """Forwards TensorRT's errors and warnings to the log."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: Any, msg: str) -> None:
        """Called by TensorRT."""
        if severity in _SEVERITIES:
            _log.log(_SEVERITIES[severity], "TensorRT: %s", msg)


def _device_array(tensor: Handle) -> DeviceArray:
    if not isinstance(tensor, DeviceArray):
        raise EngineError(f"expected a tensor of this engine, got a {type(tensor).__name__}")
    return tensor


def _check_signature(bundle: Bundle, graph: str, path: Path, engine: Any) -> None:
    """Check that a plan has the signature of its graph; a plan's free dimensions are -1."""
    expected = {
        tensor.name: (tensor.dtype, tuple(size if isinstance(size, int) else -1 for size in tensor.shape))
        for tensors in signature(bundle.spec, graph)
        for tensor in tensors
    }
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    found = {
        name: (np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name, tuple(engine.get_tensor_shape(name)))
        for name in names
    }
    if found != expected:
        raise EngineError(f"{path}: expected {expected}, found {found}; {rebuild(bundle)}")
