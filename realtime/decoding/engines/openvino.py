"""OpenVINO on the CPU, in fp32 or with the networks in bf16.

``denoise`` is compiled once for each number of conditions that the samplers use
(:mod:`realtime.decoding.engines.openvino_denoise`): fixed shapes make the demo's small model a fifth faster.
Every run allocates new output tensors, because outputs become inputs of the next run.

With bf16 (``openvino-bf16``) a step of the demo takes a third to a half less time on CPUs with bf16
instructions. The sampler's arithmetic after the last convolution stays fp32. Pictures differ slightly from
those of fp32, so ``auto`` never chooses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import frontend, properties
from openvino.properties import hint

from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Tensor
from realtime.decoding.engines.choose import counted, usable_cores
from realtime.decoding.engines.contract import Candidate, Engine, Handle
from realtime.decoding.engines.openvino_denoise import DenoiseModel, name_of
from realtime.decoding.engines.signature import check_graph, input_shapes
from realtime.errors import EngineError

_DEVICE = "CPU"
# The frontend's exceptions share no base class but Exception.
_FAILURES = (
    frontend.GeneralFailure,
    frontend.InitializationFailure,
    frontend.NotImplementedFailure,
    frontend.OpConversionFailure,
    frontend.OpValidationFailure,
    RuntimeError,
    TypeError,  # numpy raises it for an input of the wrong dtype
)
_Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of all inputs of a run."""
_PRECISIONS = {"openvino": openvino.Type.f32, "openvino-bf16": openvino.Type.bf16}


def probe(bundle: Bundle, name: str) -> Candidate:
    """Implement :meth:`realtime.decoding.engines.contract.EngineModule.probe`."""
    reason = ""
    if _PRECISIONS[name] == openvino.Type.bf16 and not _has_bf16():
        reason = "expected a CPU with bf16 instructions (AVX512_BF16 or AMX), this one has none; use openvino"
    return Candidate(name=name, reason=reason, versions={"openvino": _version()})


def open_engine(bundle: Bundle, name: str, threads: int | None) -> Engine:
    """Implement :meth:`realtime.decoding.engines.contract.EngineModule.open_engine`."""
    return OpenVinoEngine(bundle, _PRECISIONS[name], threads)


@cache
def cpu_core() -> openvino.Core:
    """The only core of this process, with the CPU plugin loaded.

    A core loads its own copy of the CPU plugin on first use. The plugin then replaces the alternate signal
    stack (``sigaltstack``) of the thread that called it, and unmaps the new stack when the core is freed. It
    puts the old stack back only if no other core has replaced it since. Otherwise the thread keeps a stack
    that is no longer mapped, and the next signal handled on it, for example Python's handler for SIGCHLD or
    SIGINT, kills the process. Therefore the plugin is loaded on a thread that ends right after, and the core
    is never freed. Saving and restoring the caller's stack would do too, but needs the C layout of
    ``stack_t`` of every platform.

    :raises EngineError: when the plugin does not load
    """
    try:
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(_load_cpu_plugin).result()
    except _FAILURES as error:
        raise EngineError(f"OpenVINO's plugin for the CPU does not load: {error}") from error


def _load_cpu_plugin() -> openvino.Core:
    core = openvino.Core()
    core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    return core


class OpenVinoEngine:
    """Runs the graphs of a bundle as compiled models.

    :param precision: precision of the networks, ``f32`` or ``bf16``
    :raises EngineError: when a graph does not load or does not match the bundle
    """

    def __init__(
        self, bundle: Bundle, precision: openvino.Type = openvino.Type.f32, threads: int | None = None
    ) -> None:
        threads = threads or usable_cores()
        self._core = cpu_core()
        self._is_paired = threads % 2 == 0  # each of the two conditions gets half of the threads
        self._settings = {
            hint.performance_mode: hint.PerformanceMode.LATENCY,
            hint.inference_precision: precision,
            # Pinning threads to cores would ignore the set of cores that this process may use.
            hint.enable_cpu_pinning: False,
            properties.inference_num_threads: threads,
        }
        self._paths = {name: bundle.graph_path(name) for name in bundle.spec.graphs}
        self._models: dict[tuple[str, _Shapes], _Model] = {}
        kind = precision.get_type_name()
        self.description = f"OpenVINO {_version()}, CPU, {counted(threads, 'thread')}, {kind}"
        for name, path in self._paths.items():
            model = _read(path)
            check_graph(bundle, name, _tensors(model.inputs), _tensors(model.outputs))
            for shapes in input_shapes(bundle.spec, name):
                self._compile(name, shapes)

    def put(self, array: NDArray[Any]) -> Handle:
        """Copy an array into a tensor."""
        return openvino.Tensor(np.ascontiguousarray(array))

    def get(self, tensor: Handle) -> NDArray[Any]:
        """Copy a tensor to an array."""
        return np.array(_tensor(tensor).data)

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        """Run a graph and return its outputs as new tensors.

        :raises EngineError: when the run fails
        """
        tensors = {name: _tensor(tensor) for name, tensor in inputs.items()}
        try:
            outputs: dict[str, Handle] = {**self._model(graph, tensors).run(tensors)}
        except _FAILURES as error:
            raise EngineError(f"{graph} failed on {self.description}: {error}") from error
        return outputs

    def _model(self, graph: str, inputs: Mapping[str, openvino.Tensor]) -> _Model:
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        found = self._models.get((graph, tuple(sorted(shapes.items()))))
        return found or self._compile(graph, shapes)

    def _compile(self, graph: str, shapes: dict[str, tuple[int, ...]]) -> _Model:
        """Compile a graph for inputs of these shapes, given by name."""
        path = self._paths[graph]
        model = _read(path)
        compiled: _Model
        try:
            if "conditions" in shapes:
                compiled = DenoiseModel(model, shapes, self._compiled, is_paired=self._is_paired)
            else:
                model.reshape(shapes)
                compiled = _WholeModel(self._compiled(model, 1))
        except _FAILURES as error:
            raise EngineError(f"{path}: expected a graph for inputs of {shapes}: {error}") from error
        self._models[graph, tuple(sorted(shapes.items()))] = compiled
        return compiled

    def _compiled(self, model: openvino.Model, n_at_once: int) -> openvino.CompiledModel:
        settings = self._settings if n_at_once == 1 else self._settings | {properties.num_streams: n_at_once}
        return self._core.compile_model(model, _DEVICE, settings)


class _Model(Protocol):
    """A compiled graph."""

    def run(self, inputs: Mapping[str, openvino.Tensor]) -> dict[str, openvino.Tensor]:
        """Run the graph and return its named outputs in new tensors."""


class _WholeModel:
    """A graph that is compiled unchanged."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self._request = compiled.create_infer_request()

    def run(self, inputs: Mapping[str, openvino.Tensor]) -> dict[str, openvino.Tensor]:
        """Run the graph and return its named outputs in new tensors."""
        for name, tensor in inputs.items():
            self._request.set_tensor(name, tensor)
        outputs = {}
        for port in self._request.model_outputs:
            outputs[name_of(port)] = openvino.Tensor(port.element_type, port.shape)
            self._request.set_tensor(port, outputs[name_of(port)])
        self._request.infer()
        return outputs


def _read(path: Path) -> openvino.Model:
    """Read a graph with the ONNX frontend only, because other frontends may execute what they read."""
    reader = frontend.FrontEndManager().load_by_framework("onnx")
    try:
        return reader.convert(reader.load(path))
    except _FAILURES as error:
        raise EngineError(f"{path}: expected an ONNX graph that OpenVINO loads: {error}") from error


def _tensors(ports: Sequence[Any]) -> list[Tensor]:
    return [
        Tensor(
            name=name_of(port),
            dtype=port.element_type.to_dtype().name,
            shape=tuple("free" if size.is_dynamic else size.get_length() for size in port.partial_shape),
        )
        for port in ports
    ]


def _tensor(handle: Handle) -> openvino.Tensor:
    if not isinstance(handle, openvino.Tensor):
        raise EngineError(f"expected a tensor of this engine, got a {type(handle).__name__}")
    return handle


def _has_bf16() -> bool:
    return "BF16" in cpu_core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")


def _version() -> str:
    return str(openvino.__version__).split("-")[0]
