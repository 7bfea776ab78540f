"""ONNX Runtime on the CPU, and what its CUDA engine shares with it."""

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
# Its exceptions share no base class but Exception.
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
    """As :func:`realtime.decoding.engines.choose.probe`."""
    return Candidate(name=name, versions=versions())


def open_engine(bundle: Bundle, name: str, threads: int | None) -> Engine:
    """As :func:`realtime.decoding.engines.choose.open_engine`."""
    return OnnxRuntimeEngine(bundle, threads)


def versions() -> dict[str, str]:
    """Of ONNX Runtime."""
    return {"onnxruntime": onnxruntime.__version__}


class OnnxRuntimeEngine:
    """The graphs of a bundle as ONNX Runtime sessions on the CPU.

    Its threads wait spinning for the next run, as is the default: without that a step takes a third longer.
    Fixing the number of conditions, or another level of graph optimisation, made no difference.

    :raises EngineError: when a graph does not load or fit the bundle
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        threads = threads or usable_cores()
        options = session_options()
        options.intra_op_num_threads = threads
        self._sessions = {name: load(bundle, name, options, CPU) for name in bundle.spec.graphs}
        self.description = f"ONNX Runtime {onnxruntime.__version__}, CPU, {counted(threads, 'thread')}"

    def put(self, array: NDArray[Any]) -> Handle:
        """An array, used where it is."""
        handle: Handle = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        return handle

    def get(self, tensor: Handle) -> NDArray[Any]:
        """A tensor as an array of its own."""
        # numpy() is a view here, and does not keep alive what it looks at.
        return np.array(own(tensor).numpy())

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        """Run a graph; its outputs are new tensors.

        :raises EngineError: when it fails
        """
        session = self._sessions[graph]
        names = [output.name for output in session.get_outputs()]
        binding = session.io_binding()
        try:
            for name, tensor in inputs.items():
                binding.bind_ortvalue_input(name, own(tensor))
            for name in names:
                binding.bind_output(name)
            session.run_with_iobinding(binding)
        except FAILURES as error:
            raise EngineError(f"{graph} failed on {self.description}: {error}") from error
        return dict(zip(names, binding.get_outputs(), strict=True))


def own(tensor: Handle) -> onnxruntime.OrtValue:
    """A handle as what it is here. :raises EngineError: when it is another engine's."""
    if not isinstance(tensor, onnxruntime.OrtValue):
        raise EngineError(f"expected a tensor of this engine, got a {type(tensor).__name__}")
    return tensor


def session_options() -> onnxruntime.SessionOptions:
    """What all sessions have in common."""
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; what matters of the rest is checked and raised here
    return options


def load(
    bundle: Bundle,
    name: str,
    options: onnxruntime.SessionOptions,
    provider: str,
    provider_options: Mapping[str, str] | None = None,
    n: int | None = None,
) -> onnxruntime.InferenceSession:
    """A session for a graph on one provider and no other.

    :param n: number of conditions to fix, where the graph takes conditions
    :raises EngineError: when the graph does not load there, or does not fit the bundle
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
