"""A device on the host, to run the engine's own logic where there is no GPU.

CUDA's bindings and TensorRT-RTX's are the real ones, so that every name and type is; only what needs a device
is replaced: memory is the host's, a stream does at once what it is told or, while it captures, notes it down,
and a plan is an ONNX graph that ONNX Runtime runs. It is as strict as a device would be: on alignment, on
bounds, on memory given back, and on what must not happen during a capture. That the real ones run is tested
by tests marked ``gpu``.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tensorrt_rtx
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

ALIGNMENT = 256
OK = cudart.cudaError_t.cudaSuccess
UNSUPPORTED = cudart.cudaError_t.cudaErrorStreamCaptureUnsupported
_NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}
_TYPES = {np.float32: "FLOAT", np.int64: "INT64", np.uint8: "UINT8"}

Work = Callable[[], Any]


class HostGpu:
    """Replaces the functions of the CUDA runtime that need a device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memory: dict[int, tuple[Any, int]] = {}
        self.captured: list[Work] | None = None
        self.captures = True
        self.launches = self.recorded = 0
        for name in dir(self):
            if name.startswith("cuda"):
                monkeypatch.setattr(cudart, name, getattr(self, name))

    def queue(self, work: Work) -> None:
        if self.captured is None:
            work()
        else:
            self.captured.append(work)

    def array(self, address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Memory of the device as an array."""
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        assert n_bytes <= self.memory[address][1]
        return np.frombuffer((ctypes.c_char * n_bytes).from_address(address), dtype=dtype).reshape(shape)

    def cudaSetDevice(self, device: int) -> Any:
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return OK, cudart.cudaStream_t(1)

    def cudaDeviceGetDefaultMemPool(self, device: int) -> Any:
        return OK, cudart.cudaMemPool_t(1)

    def cudaMemPoolSetAttribute(self, pool: Any, attribute: Any, value: Any) -> Any:
        return (OK,)

    def cudaMallocAsync(self, n_bytes: int, stream: Any) -> Any:
        assert self.captured is None
        buffer = ctypes.create_string_buffer(n_bytes + ALIGNMENT)
        address = -(-ctypes.addressof(buffer) // ALIGNMENT) * ALIGNMENT
        self.memory[address] = buffer, n_bytes
        return OK, address

    def cudaFreeAsync(self, address: int, stream: Any) -> Any:
        assert self.captured is None
        del self.memory[address]
        return (OK,)

    def cudaMemcpyAsync(self, to: int, source: int, n_bytes: int, kind: Any, stream: Any) -> Any:
        kinds = cudart.cudaMemcpyKind
        if kind != kinds.cudaMemcpyDeviceToHost:
            assert n_bytes <= self.memory[to][1]
        if kind != kinds.cudaMemcpyHostToDevice:
            assert n_bytes <= self.memory[source][1]
        assert self.captured is None or kind == kinds.cudaMemcpyDeviceToDevice
        self.queue(lambda: ctypes.memmove(to, source, n_bytes))
        return (OK,)

    def cudaStreamSynchronize(self, stream: Any) -> Any:
        assert self.captured is None
        return (OK,)

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> Any:
        self.captured = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: Any) -> Any:
        work, self.captured = self.captured, None
        return (OK, work) if self.captures else (UNSUPPORTED, None)

    def cudaGraphInstantiate(self, work: list[Work], flags: int) -> Any:
        self.recorded += 1
        return OK, list(work)

    def cudaGraphDestroy(self, work: list[Work]) -> Any:
        work.clear()
        return (OK,)

    def cudaGraphExecDestroy(self, work: list[Work]) -> Any:
        return (OK,)

    def cudaGraphLaunch(self, work: list[Work], stream: Any) -> Any:
        self.launches += 1
        for each in work:
            each()
        return (OK,)


class HostRuntime:
    """Replaces TensorRT's runtime; a plan is an ONNX graph."""

    gpu: HostGpu

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        try:
            return _Engine(onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"]), self.gpu)
        except Exception as error:  # onnxruntime's have no other base class
            self._logger.log(tensorrt_rtx.ILogger.Severity.ERROR, str(error))
            return None


class _Engine:
    def __init__(self, session: onnxruntime.InferenceSession, gpu: HostGpu) -> None:
        self.session, self.gpu = session, gpu
        self._tensors = [*session.get_inputs(), *session.get_outputs()]
        self.num_io_tensors = len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return str(self._tensors[index].name)

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(tensorrt_rtx.DataType, _TYPES[_NUMPY[self._tensor(name).type]])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._tensor(name).shape)

    def create_execution_context(self) -> _Context:
        return _Context(self)

    def _tensor(self, name: str) -> Any:
        return next(tensor for tensor in self._tensors if tensor.name == name)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        known = self._engine.get_tensor_shape(name)
        return len(known) == len(shape) and all(a in (-1, b) for a, b in zip(known, shape, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name, self._engine.get_tensor_shape(name))

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name not in self._addresses, "bound once"
        self._addresses[name] = address
        return address % ALIGNMENT == 0

    def execute_async_v3(self, stream: int) -> bool:
        self._engine.gpu.queue(self._execute)
        return True

    def _execute(self) -> None:
        session = self._engine.session
        inputs = {tensor.name: self._array(tensor.name) for tensor in session.get_inputs()}
        names = [tensor.name for tensor in session.get_outputs()]
        for name, output in zip(names, session.run(names, inputs), strict=True):
            self._array(name)[...] = output

    def _array(self, name: str) -> NDArray[Any]:
        dtype = tensorrt_rtx.nptype(self._engine.get_tensor_dtype(name))
        return self._engine.gpu.array(self._addresses[name], self.get_tensor_shape(name), dtype)
