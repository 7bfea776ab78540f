"""ONNX Runtime on the CPU, and functions shared with the CUDA engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Tensor
from realtime.decoding.engines.choose import counted, usable_cores
from realtime.decoding.engines.contract import Candidate, Engine, Handle
from realtime.decoding.engines.signature import check_graph
from realtime.errors import EngineError

CPU = "CPUExecutionProvider"

_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}
# ONNX Runtime's exceptions share no base class but Exception.
FAILURES = (
    state.EPFail,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
    RuntimeError,
    ValueError,
)


def probe(bundle: Bundle, name: str) -> Candidate:
    """Implement :meth:`realtime.decoding.engines.contract.EngineModule.probe`."""
    return Candidate(name=name, versions=versions())


def open_engine(bundle: Bundle, name: str, threads: int | None) -> Engine:
    """Implement :meth:`realtime.decoding.engines.contract.EngineModule.open_engine`."""
    return OnnxRuntimeEngine(bundle, threads)


def versions() -> dict[str, str]:
    """Return the version of ONNX Runtime, for :attr:`Candidate.versions`."""
    return {"onnxruntime": onnxruntime.__version__}


class OnnxRuntimeEngine:
    """Runs the graphs of a bundle in ONNX Runtime sessions on the CPU.

    Idle threads spin, as is the default: without spinning a step takes a third longer. Fixing the number of
    conditions or changing the level of graph optimisation made no difference.

    :raises EngineError: when a graph does not load or does not match the bundle
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        threads = threads or usable_cores()
        options = session_options()
        options.intra_op_num_threads = threads
        self._sessions = {name: load(bundle, name, options, CPU) for name in bundle.spec.graphs}
        self.description = f"ONNX Runtime {onnxruntime.__version__}, CPU, {counted(threads, 'thread')}"

    def put(self, array: NDArray[Any]) -> Handle:
        """Wrap an array without copying it."""
        handle: Handle = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        return handle

    def get(self, tensor: Handle) -> NDArray[Any]:
        """Copy a tensor to an array."""
        # On the CPU, numpy() returns a view that does not keep the tensor alive.
        return np.array(to_ort_value(tensor).numpy())

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        """Run a graph and return its outputs as new tensors.

        :raises EngineError: when the run fails
        """
        session = self._sessions[graph]
        names = [output.name for output in session.get_outputs()]
        binding = session.io_binding()
        try:
            for name, tensor in inputs.items():
                binding.bind_ortvalue_input(name, to_ort_value(tensor))
            for name in names:
                binding.bind_output(name)
            session.run_with_iobinding(binding)
        except FAILURES as error:
            raise EngineError(f"{graph} failed on {self.description}: {error}") from error
        return dict(zip(names, binding.get_outputs(), strict=True))


def to_ort_value(tensor: Handle) -> onnxruntime.OrtValue:
    """Check that a handle is ONNX Runtime's. :raises EngineError: when another engine made it"""
    if not isinstance(tensor, onnxruntime.OrtValue):
        raise EngineError(f"expected a tensor of this engine, got a {type(tensor).__name__}")
    return tensor


def session_options() -> onnxruntime.SessionOptions:
    """Return the options common to all sessions."""
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    return options


def load(
    bundle: Bundle,
    name: str,
    options: onnxruntime.SessionOptions,
    provider: str,
    provider_options: Mapping[str, str] | None = None,
    n: int | None = None,
) -> onnxruntime.InferenceSession:
    """Load a graph into a session on one provider, without fallback to another.

    :param n: fixed number of conditions, for graphs that take conditions
    :raises EngineError: when the graph does not load on the provider or does not match the bundle
    """
    path = bundle.graph_path(name)
    if n:
        options.add_free_dimension_override_by_name("n", n)
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=[(provider, dict(provider_options or {}))]
        )
    except FAILURES as error:
        raise EngineError(f"{path}: expected an ONNX graph that ONNX Runtime loads: {error}") from error
    if session.get_providers()[0] != provider:
        raise EngineError(f"{path}: expected {provider}, got {session.get_providers()[0]}")
    check_graph(bundle, name, _tensors(session.get_inputs()), _tensors(session.get_outputs()), n)
    return session


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    return [
        Tensor(
            name=arg.name,
            dtype=_DTYPES.get(arg.type, arg.type),
            shape=tuple(size if isinstance(size, int) else str(size) for size in arg.shape),
        )
        for arg in args
    ]
