"""ONNX Runtime on CUDA: each graph is captured as a CUDA graph and replayed, without fallback to the CPU.

A CUDA graph replays the same kernels on the same addresses. So there is one session with fixed shapes for
each graph and each number of conditions that the samplers use, and its inputs and outputs are bound once. A
run copies its inputs to the bound ones on the device and returns the bound outputs.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from realtime.bundle.bundle import Bundle
from realtime.decoding.engines.contract import Candidate, Engine, Handle
from realtime.decoding.engines.onnxruntime import FAILURES, load, session_options, to_ort_value, versions
from realtime.decoding.engines.signature import input_shapes, signature
from realtime.errors import EngineError

CUDA = "CUDAExecutionProvider"

_SETTINGS = {
    "enable_cuda_graph": "1",
    "use_tf32": "0",  # fp32 graphs compute in fp32; for speed, export fp16
}


def probe(bundle: Bundle, name: str) -> Candidate:
    """Implement :meth:`realtime.decoding.engines.contract.EngineModule.probe`."""
    return Candidate(name=name, reason=_no_cuda(), versions=versions())


def open_engine(bundle: Bundle, name: str, threads: int | None) -> Engine:
    """Implement :meth:`realtime.decoding.engines.contract.EngineModule.open_engine`; ignores ``threads``."""
    with contextlib.redirect_stdout(sys.stderr):  # it prints the libraries it does not find to stdout
        onnxruntime.preload_dlls()
    return BoundEngine(bundle, CUDA, "cuda", _SETTINGS)


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """A session whose inputs and outputs have fixed addresses."""

    session: onnxruntime.InferenceSession
    binding: onnxruntime.IOBinding
    inputs: dict[str, onnxruntime.OrtValue]
    outputs: dict[str, Handle]

    def run(self, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        for name, tensor in inputs.items():
            self.inputs[name].update_inplace(to_ort_value(tensor))
        self.session.run_with_iobinding(self.binding)
        return dict(self.outputs)


class BoundEngine:
    """Runs the graphs of a bundle with fixed shapes and addresses on one provider.

    :param provider: CUDA's; tests use the CPU's
    :param device: device of the provider's tensors, such as ``cuda``
    :raises EngineError: when a graph does not load, or a node of it cannot run on the provider
    """

    def __init__(self, bundle: Bundle, provider: str, device: str, settings: Mapping[str, str]) -> None:
        self._device = device
        self._bound = {
            _key(graph, shapes): self._bind(bundle, graph, shapes, provider, settings)
            for graph in bundle.spec.graphs
            for shapes in input_shapes(bundle.spec, graph)
        }
        self.description = f"ONNX Runtime {onnxruntime.__version__}, {device.upper()}"

    def put(self, array: NDArray[Any]) -> Handle:
        """Copy an array to the device."""
        handle: Handle = onnxruntime.OrtValue.ortvalue_from_numpy(
            np.ascontiguousarray(array), self._device, 0
        )
        return handle

    def get(self, tensor: Handle) -> NDArray[Any]:
        """Copy a tensor to an array on the host."""
        return np.array(to_ort_value(tensor).numpy())

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        """Run a graph; its next run overwrites the outputs.

        :raises EngineError: when the run fails, or no sampler of the bundle uses inputs of these shapes
        """
        shapes = {name: tuple(to_ort_value(tensor).shape()) for name, tensor in inputs.items()}
        bound = self._bound.get(_key(graph, shapes))
        if bound is None:
            raise EngineError(
                f"{graph} failed on {self.description}: it was not bound for inputs of {shapes}"
            )
        try:
            return bound.run(inputs)
        except FAILURES as error:
            raise EngineError(f"{graph} failed on {self.description}: {error}") from error

    def _bind(
        self,
        bundle: Bundle,
        graph: str,
        shapes: Mapping[str, tuple[int, ...]],
        provider: str,
        settings: Mapping[str, str],
    ) -> _Bound:
        options = session_options()
        if provider == CUDA:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        n = shapes["conditions"][0] if "conditions" in shapes else None
        session = load(bundle, graph, options, provider, settings, n)
        inputs, outputs = signature(bundle.spec, graph)
        binding = session.io_binding()
        given = {each.name: self._empty(shapes[each.name], each.dtype) for each in inputs}
        made = {each.name: self._empty(tuple(map(int, each.shape)), each.dtype) for each in outputs}
        for name, tensor in given.items():
            binding.bind_ortvalue_input(name, tensor)
        for name, tensor in made.items():
            binding.bind_ortvalue_output(name, tensor)
        return _Bound(session=session, binding=binding, inputs=given, outputs=dict(made))

    def _empty(self, shape: tuple[int, ...], dtype: str) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype).type, self._device, 0)


def _key(graph: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[object, ...]:
    return graph, *sorted(shapes.items())


def _has_cuda_device() -> bool:
    """Ask the driver, because onnxruntime-gpu lists CUDA as available on every machine."""
    if CUDA not in onnxruntime.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _no_cuda() -> str:
    """Return why CUDA is unavailable and what to do; empty if it is available."""
    if CUDA not in onnxruntime.get_available_providers():
        return "expected ONNX Runtime with CUDA, found one without; pip install onnxruntime-gpu"
    if not _has_cuda_device():
        return "expected a CUDA device, found none; use an engine that runs on the CPU"
    return ""
