"""ONNX Runtime, on CUDA or on the CPU: as asked, never one for the other."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from realtime.bundle import Bundle, Tensor
from realtime.engines import Candidate, Engine, Handle, check_graph, counted, usable_cores
from realtime.errors import EngineError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

_DEVICES = {CPU: "cpu", CUDA: "cuda"}
_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}
# Its exceptions share no base class but Exception.
_FAILURES = (
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
    """As :func:`realtime.engines.probe`, for the names of this module."""
    versions = {"onnxruntime": onnxruntime.__version__}
    return Candidate(name=name, reason=_no_cuda() if name == "onnxruntime-cuda" else "", versions=versions)


def open_engine(bundle: Bundle, name: str, threads: int | None) -> Engine:
    """As :func:`realtime.engines.open_engine`, for the names of this module."""
    return OnnxRuntimeEngine(bundle, CUDA if name == "onnxruntime-cuda" else CPU, threads)


class OnnxRuntimeEngine:
    """The graphs of a bundle as ONNX Runtime sessions on one device.

    :raises EngineError: when the provider is not to be had, or a graph does not load or fit the bundle
    """

    def __init__(self, bundle: Bundle, provider: str, threads: int | None = None) -> None:
        threads = threads or usable_cores()
        if provider == CUDA:
            onnxruntime.preload_dlls()
        self._device = _DEVICES[provider]
        self._sessions = {name: _load(bundle, name, provider, threads) for name in bundle.spec.graphs}
        where = "CUDA" if provider == CUDA else f"CPU, {counted(threads, 'thread')}"
        self.description = f"ONNX Runtime {onnxruntime.__version__}, {where}"

    def put(self, array: NDArray[Any]) -> Handle:
        """Bring an array to the device; on the CPU it is used where it is."""
        handle: Handle = onnxruntime.OrtValue.ortvalue_from_numpy(
            np.ascontiguousarray(array), self._device, 0
        )
        return handle

    def get(self, tensor: Handle) -> NDArray[Any]:
        """A tensor as an array of the host, its own."""
        if not isinstance(tensor, onnxruntime.OrtValue):
            raise EngineError(f"expected a tensor of this engine, got a {type(tensor).__name__}")
        # On the CPU numpy() is a view, and does not keep alive what it looks at.
        return np.array(tensor.numpy())

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        """Run a graph; its outputs stay on the device.

        :raises EngineError: when it fails
        """
        session = self._sessions[graph]
        names = [output.name for output in session.get_outputs()]
        binding = session.io_binding()
        try:
            for name, tensor in inputs.items():
                binding.bind_ortvalue_input(name, tensor)
            for name in names:
                binding.bind_output(name, self._device, 0)
            session.run_with_iobinding(binding)
        except _FAILURES as error:
            raise EngineError(f"{graph} failed on {self.description}: {error}") from error
        return dict(zip(names, binding.get_outputs(), strict=True))


def _load(bundle: Bundle, name: str, provider: str, threads: int) -> onnxruntime.InferenceSession:
    path = bundle.graph_path(name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; what matters of the rest is checked and raised here
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
    except _FAILURES as error:
        raise EngineError(f"{path}: expected an ONNX graph that ONNX Runtime loads: {error}") from error
    if session.get_providers()[0] != provider:
        raise EngineError(f"{path}: expected {provider}, got {session.get_providers()[0]}")
    check_graph(bundle, name, _tensors(session.get_inputs()), _tensors(session.get_outputs()))
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


def _has_cuda_device() -> bool:
    """Ask the driver itself: onnxruntime-gpu lists CUDA as available on every machine."""
    if CUDA not in onnxruntime.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _no_cuda() -> str:
    """Why CUDA is not to be had, and what to do; empty where it is."""
    if CUDA not in onnxruntime.get_available_providers():
        return "expected ONNX Runtime with CUDA, found one without; install onnxruntime-gpu"
    if not _has_cuda_device():
        return "expected a CUDA device, none answers; use an engine of the CPU"
    return ""
