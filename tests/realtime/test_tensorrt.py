"""The TensorRT engine's own logic, on a device that is the host: see :mod:`hostgpu`."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from realtime.bundle.bundle import Bundle
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine
from realtime.decoding.engines.contract import Engine, Handle, LoopEngine
from realtime.decoding.engines.cuda import Device, call, first_device
from realtime.errors import EngineError

pytestmark = pytest.mark.skipif(
    not find_spec("tensorrt_rtx"), reason="TensorRT-RTX is published for x86-64 Linux only"
)
Array = NDArray[Any]


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The engine's module, on the host."""
    from .hostgpu import HostGpu, HostRuntime

    monkeypatch.setitem(sys.modules, "tensorrt", importlib.import_module("tensorrt_rtx"))
    sys.modules.pop("realtime.decoding.engines.tensorrt", None)
    module = importlib.import_module("realtime.decoding.engines.tensorrt")
    monkeypatch.setattr(HostRuntime, "gpu", HostGpu(monkeypatch), raising=False)
    monkeypatch.setattr(module.trt, "Runtime", HostRuntime)
    monkeypatch.setattr(module, "first_device", lambda: Device(name="A GPU", sm="90"))
    yield module
    gc.collect()  # what is given back must be so to this device
    del sys.modules["realtime.decoding.engines.tensorrt"]


@pytest.fixture
def gpu(tensorrt: ModuleType) -> Any:
    return tensorrt.trt.Runtime.gpu


def plans(bundle: Bundle) -> dict[str, Path]:
    return {graph: bundle.graph_path(graph) for graph in bundle.spec.graphs}


class Steps:
    """Hides ``sample``, so that the decoder runs one step per call."""

    def __init__(self, engine: Engine) -> None:
        self.description, self.put, self.get = engine.description, engine.put, engine.get
        self._engine = engine

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        return self._engine.run(graph, inputs)


def windows(count: int) -> Array:
    return np.random.default_rng(7).standard_normal((count, 30, 6)).astype(np.float32)


@pytest.mark.parametrize(("made", "n_recorded"), [("tiny_bundle", 4), ("starting_bundle", 3)])
def test_recorded_loops_single_steps_and_the_cpu_decode_the_same(
    made: str, n_recorded: int, tensorrt: ModuleType, gpu: Any, request: pytest.FixtureRequest
) -> None:
    bundle = Bundle.open(request.getfixturevalue(made))
    engine = tensorrt.TensorRtEngine(bundle, plans(bundle))
    assert isinstance(engine, LoopEngine)
    loops, steps = Decoder(bundle, engine), Decoder(bundle, Steps(engine))
    cpu = Decoder(bundle, open_engine(bundle, "onnxruntime-cpu"))
    launches, recorded = gpu.launches, gpu.recorded
    assert recorded == n_recorded, "both tables, and a step with guidance and, where there is, one without"
    for sampler in bundle.spec.samplers:
        for window in windows(3):
            images = [each.decode(window, sampler).image for each in (loops, steps, cpu)]
            np.testing.assert_array_equal(images[0], images[1])
            np.testing.assert_array_equal(images[0], images[2])
            assert images[0].std() > 20
    assert gpu.launches == launches + 2 * 3
    assert gpu.recorded == recorded, "and only once"
    assert engine.description == f"TensorRT {tensorrt.trt.__version__}, A GPU"


def test_a_sampler_that_cannot_be_recorded_runs_step_by_step(
    tiny_bundle: Path, tensorrt: ModuleType, gpu: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(tiny_bundle)
    gpu.captures = False
    engine = tensorrt.TensorRtEngine(bundle, plans(bundle))
    image = Decoder(bundle, engine).decode(windows(1)[0]).image
    expected = Decoder(bundle, open_engine(bundle, "onnxruntime-cpu")).decode(windows(1)[0]).image
    np.testing.assert_array_equal(image, expected)
    assert gpu.launches == 0
    assert engine.description.endswith(", A GPU, step by step")
    assert "a sampler runs step by step, because it cannot be recorded as a CUDA graph: " in caplog.text
    assert "operation not permitted when stream is capturing" in caplog.text


def test_all_device_memory_is_freed(tiny_bundle: Path, tensorrt: ModuleType, gpu: Any) -> None:
    bundle = Bundle.open(tiny_bundle)
    decoder = Decoder(bundle, tensorrt.TensorRtEngine(bundle, plans(bundle)))
    decoder.decode(windows(1)[0])
    gc.collect()
    before = len(gpu.memory)
    for window in windows(3):
        decoder.decode(window)
    assert len(gpu.memory) == before, "a decode leaves nothing behind"
    del decoder
    gc.collect()
    assert not gpu.memory


def test_outputs_outlive_the_next_run(tiny_bundle: Path, tensorrt: ModuleType) -> None:
    bundle = Bundle.open(tiny_bundle)
    engine = tensorrt.TensorRtEngine(bundle, plans(bundle))
    first, second = (
        engine.run("brain", {"window": engine.put(window[np.newaxis])})["condition"] for window in windows(2)
    )
    again = engine.run("brain", {"window": engine.put(windows(1))})["condition"]
    np.testing.assert_array_equal(engine.get(first), engine.get(again))
    assert np.abs(engine.get(first) - engine.get(second)).max() > 0.1


def test_tensors_of_wrong_shape_are_refused(tiny_bundle: Path, tensorrt: ModuleType) -> None:
    bundle = Bundle.open(tiny_bundle)
    engine = tensorrt.TensorRtEngine(bundle, plans(bundle))
    with pytest.raises(
        EngineError, match=r"brain failed on .*: expected window of float32 \(1, 30, 6\), got"
    ):
        engine.run("brain", {"window": engine.put(np.zeros((1, 29, 6), np.float32))})
    with pytest.raises(EngineError, match="expected a tensor of this engine, got a str"):
        engine.get("latents")
    with pytest.raises(EngineError, match="denoise with 3 conditions"):
        engine.run("denoise", {"conditions": engine.put(np.zeros((3, 2, 4), np.float32))})


def test_a_plan_of_another_graph_is_refused(tiny_bundle: Path, tensorrt: ModuleType) -> None:
    bundle = Bundle.open(tiny_bundle)
    swapped = plans(bundle) | {"vae": bundle.graph_path("brain")}
    with pytest.raises(
        EngineError, match=r"brain\.onnx: expected {'latents': .*, found {'window': .*; build"
    ):
        tensorrt.TensorRtEngine(bundle, swapped)


def test_a_plan_that_does_not_load_is_named_and_the_log_says_why(
    tiny_bundle: Path, tmp_path: Path, tensorrt: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(tiny_bundle)
    (tmp_path / "vae.plan").write_bytes(b"of another build")
    with pytest.raises(EngineError, match=r"vae\.plan: expected a plan that TensorRT .* loads here"):
        tensorrt.TensorRtEngine(bundle, plans(bundle) | {"vae": tmp_path / "vae.plan"})
    assert "TensorRT: " in caplog.text


def test_a_missing_cuda_device_is_reported() -> None:
    code, count = cudart.cudaGetDeviceCount()
    if code == cudart.cudaError_t.cudaSuccess and count:
        pytest.skip("a device answers")
    with pytest.raises(
        EngineError, match="expected a CUDA device, found none: .*; check the device with nvidia-smi"
    ):
        first_device()
    with pytest.raises(EngineError, match="cudaMallocAsync failed: .*; check the device with nvidia-smi"):
        call(cudart.cudaMallocAsync, 16, cudart.cudaStream_t(0))
