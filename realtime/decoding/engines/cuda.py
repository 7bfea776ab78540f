"""CUDA through NVIDIA's own bindings: as much of its runtime as an engine needs, with errors in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda.bindings import driver
from cuda.bindings import runtime as cudart
from numpy.typing import DTypeLike, NDArray

from realtime.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU."""

    name: str
    sm: str
    """Its architecture, as in sm90."""


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; returns its results without the code of success.

    :raises EngineError: what CUDA says
    """
    try:
        code, *results = function(*arguments)
    except RuntimeError as error:  # the bindings find no library of CUDA
        raise EngineError(f"CUDA is not to be had: {error}; install NVIDIA's driver") from error
    if code != cudart.cudaError_t.cudaSuccess:
        said = cudart.cudaGetErrorString(code)[1]
        text = said.decode() if isinstance(said, bytes) else said
        raise EngineError(f"{function.__name__} failed: {text}; see what nvidia-smi says of the device")
    return results[0] if len(results) == 1 else results


def first_device() -> Device:
    """The first CUDA device that this process sees; ``CUDA_VISIBLE_DEVICES`` chooses.

    :raises EngineError: when none answers
    """
    try:
        count = call(cudart.cudaGetDeviceCount)
    except EngineError as error:
        raise EngineError(f"expected a CUDA device, none answers: {error}") from error
    if not count:
        raise EngineError("expected a CUDA device, none answers; see what nvidia-smi says")
    kinds = cudart.cudaDeviceAttr
    major, minor = (
        call(cudart.cudaDeviceGetAttribute, kind, 0)
        for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
    )
    return Device(name=call(cudart.cudaGetDeviceProperties, 0).name.decode(), sm=f"{major}{minor}")


class DeviceArray:
    """Memory of a shape and type on the device; freed with this object, after what its stream still does.

    :raises EngineError: when there is not enough
    """

    def __init__(self, stream: Any, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.n_bytes = math.prod(shape) * self.dtype.itemsize
        self._stream = stream
        self.address = int(call(cudart.cudaMallocAsync, self.n_bytes, stream))

    def __del__(self) -> None:
        if hasattr(self, "address"):
            cudart.cudaFreeAsync(self.address, self._stream)


class Graph:
    """Work recorded on a stream, launched as one."""

    def __init__(self, graph: Any) -> None:
        self._executable = call(cudart.cudaGraphInstantiate, graph, 0)

    def launch(self, stream: Stream) -> None:
        """Start the work on a stream."""
        call(cudart.cudaGraphLaunch, self._executable, stream.handle)

    def __del__(self) -> None:
        if hasattr(self, "_executable"):
            cudart.cudaGraphExecDestroy(self._executable)


class Stream:
    """A queue of work on the first device."""

    def __init__(self) -> None:
        call(cudart.cudaSetDevice, 0)
        self.handle = call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        # What is freed stays with the process: allocating then takes no longer than it must.
        pool = call(cudart.cudaDeviceGetDefaultMemPool, 0)
        attribute = cudart.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
        call(cudart.cudaMemPoolSetAttribute, pool, attribute, driver.cuuint64_t(2**64 - 1))

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """Memory whose content is whatever it was."""
        return DeviceArray(self.handle, shape, dtype)

    def upload(self, source: NDArray[Any], to: DeviceArray) -> None:
        """Copy an array of the host; it may go once this returns."""
        source = np.ascontiguousarray(source, dtype=to.dtype)
        self._copy(to.address, source.ctypes.data, to.n_bytes, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)
        self.synchronize()

    def download(self, source: DeviceArray) -> NDArray[Any]:
        """An array of the host, once all that was queued before is done."""
        to = np.empty(source.shape, source.dtype)
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(to.ctypes.data, source.address, source.n_bytes, kind)
        self.synchronize()
        return to

    def copy(self, source: DeviceArray, to: DeviceArray) -> None:
        """Queue a copy on the device."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(to.address, source.address, source.n_bytes, kind)

    def duplicate(self, source: DeviceArray) -> DeviceArray:
        """Queue a copy on the device into new memory."""
        to = self.allocate(source.shape, source.dtype)
        self.copy(source, to)
        return to

    def synchronize(self) -> None:
        """Wait for all that was queued."""
        call(cudart.cudaStreamSynchronize, self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` queues on this stream, instead of doing it; it must allocate nothing.

        :raises EngineError: of ``work``, or when it does what cannot be recorded
        """
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(cudart.cudaStreamBeginCapture, self.handle, mode)
        try:
            work()
        except EngineError:
            cudart.cudaStreamEndCapture(self.handle)  # the stream is of use again
            raise
        graph = call(cudart.cudaStreamEndCapture, self.handle)
        try:
            return Graph(graph)
        finally:
            cudart.cudaGraphDestroy(graph)

    def _copy(self, to: int, source: int, n_bytes: int, kind: Any) -> None:
        call(cudart.cudaMemcpyAsync, to, source, n_bytes, kind, self.handle)
