"""The part of the CUDA runtime that an engine needs, through NVIDIA's Python bindings.

Error codes become exceptions.
"""

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
    """Architecture, such as 90 for sm90."""


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the CUDA runtime and return its results without the status code.

    :raises EngineError: when the status code is an error; the message contains CUDA's text
    """
    try:
        code, *results = function(*arguments)
    except RuntimeError as error:  # the bindings did not find CUDA's library
        raise EngineError(f"CUDA cannot be loaded: {error}; install NVIDIA's driver") from error
    if code != cudart.cudaError_t.cudaSuccess:
        said = cudart.cudaGetErrorString(code)[1]
        text = said.decode() if isinstance(said, bytes) else said
        raise EngineError(f"{function.__name__} failed: {text}; check the device with nvidia-smi")
    return results[0] if len(results) == 1 else results


def first_device() -> Device:
    """Return the first CUDA device that this process sees; ``CUDA_VISIBLE_DEVICES`` selects it.

    :raises EngineError: when there is none
    """
    try:
        count = call(cudart.cudaGetDeviceCount)
    except EngineError as error:
        raise EngineError(f"expected a CUDA device, found none: {error}") from error
    if not count:
        raise EngineError("expected a CUDA device, found none; check the device with nvidia-smi")
    kinds = cudart.cudaDeviceAttr
    major, minor = (
        call(cudart.cudaDeviceGetAttribute, kind, 0)
        for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
    )
    return Device(name=call(cudart.cudaGetDeviceProperties, 0).name.decode(), sm=f"{major}{minor}")


class DeviceArray:
    """An array on the device; deleting it frees its memory once the stream has finished its queued work.

    :raises EngineError: when the device has not enough memory
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
    """A CUDA graph: recorded work that is launched as a whole."""

    def __init__(self, graph: Any) -> None:
        self._executable = call(cudart.cudaGraphInstantiate, graph, 0)

    def launch(self, stream: Stream) -> None:
        """Queue the graph on a stream."""
        call(cudart.cudaGraphLaunch, self._executable, stream.handle)

    def __del__(self) -> None:
        if hasattr(self, "_executable"):
            cudart.cudaGraphExecDestroy(self._executable)


class Stream:
    """A queue of work on the first device."""

    def __init__(self) -> None:
        call(cudart.cudaSetDevice, 0)
        self.handle = call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        # Freed memory stays in the process's pool, so later allocations are fast.
        pool = call(cudart.cudaDeviceGetDefaultMemPool, 0)
        attribute = cudart.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
        call(cudart.cudaMemPoolSetAttribute, pool, attribute, driver.cuuint64_t(2**64 - 1))

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """Allocate an uninitialised array."""
        return DeviceArray(self.handle, shape, dtype)

    def upload(self, source: NDArray[Any], to: DeviceArray) -> None:
        """Copy an array from the host and wait until it is copied."""
        source = np.ascontiguousarray(source, dtype=to.dtype)
        self._copy(to.address, source.ctypes.data, to.n_bytes, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)
        self.synchronize()

    def download(self, source: DeviceArray) -> NDArray[Any]:
        """Wait for all queued work and return a copy of an array on the host."""
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
        """Wait for all queued work."""
        call(cudart.cudaStreamSynchronize, self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` queues on this stream without running it; ``work`` must not allocate memory.

        :raises EngineError: from ``work``, or when it queues something that cannot be recorded
        """
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(cudart.cudaStreamBeginCapture, self.handle, mode)
        try:
            work()
        except EngineError:
            cudart.cudaStreamEndCapture(self.handle)  # otherwise the stream stays unusable
            raise
        graph = call(cudart.cudaStreamEndCapture, self.handle)
        try:
            return Graph(graph)
        finally:
            cudart.cudaGraphDestroy(graph)

    def _copy(self, to: int, source: int, n_bytes: int, kind: Any) -> None:
        call(cudart.cudaMemcpyAsync, to, source, n_bytes, kind, self.handle)
