"""Engines compute what the graphs define, or report what is wrong with them."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from realtime.bundle import spec as bundle_spec
from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines import choose, onnxruntime, onnxruntime_cuda, openvino
from realtime.decoding.engines.choose import AUTO_ORDER, ENGINES, open_and_use, open_engine, probe
from realtime.decoding.engines.contract import Engine
from realtime.decoding.engines.external_weights import weight_files
from realtime.decoding.engines.onnxruntime_cuda import BoundEngine
from realtime.decoding.engines.signature import signature
from realtime.errors import EngineError


@pytest.fixture(params=["onnxruntime-cpu", "openvino"])
def name(request: pytest.FixtureRequest) -> str:
    """Every engine that a CPU runs, by name."""
    return str(request.param)


@pytest.fixture
def folder(make_tiny_bundle: Callable[..., Path], tmp_path: Path) -> Path:
    return make_tiny_bundle(tmp_path / "bundle")


def relist(folder: Path, file: str) -> None:
    spec = bundle_spec.decode_spec((folder / "bundle.json").read_bytes())
    listed = {**spec.files, file: file_sha256(folder / file)}
    bundle_spec.write_spec(folder, msgspec.structs.replace(spec, files=listed))


def test_a_graph_computes_what_it_says(name: str, tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    engine = open_engine(opened, name)
    window = np.random.default_rng(0).standard_normal((1, 30, 6)).astype(np.float32)
    condition = engine.get(engine.run("brain", {"window": engine.put(window)})["condition"])
    graph = onnx.load(tiny_bundle / "brain.onnx").graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}["brain_weights"]
    np.testing.assert_allclose(
        condition, np.tanh(window.reshape(1, -1) @ weights).reshape(1, 2, 4), atol=1e-6
    )


def test_tensors_go_in_and_out_unchanged(name: str, tiny_bundle: Path) -> None:
    engine = open_engine(Bundle.open(tiny_bundle), name)
    array = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    for layout in (array, np.asfortranarray(array)):
        np.testing.assert_array_equal(engine.get(engine.put(layout)), array)
    with pytest.raises(EngineError, match="expected a tensor of this engine, got a str"):
        engine.get("latents")


def test_an_engine_says_what_it_runs_on(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    one = open_engine(opened, "onnxruntime-cpu", threads=1)
    assert one.description.startswith("ONNX Runtime ")
    assert one.description.endswith("CPU, 1 thread")
    assert open_engine(opened, "onnxruntime-cpu", threads=2).description.endswith("CPU, 2 threads")
    assert open_engine(opened, "openvino", threads=2).description.endswith("CPU, 2 threads, f32")


def test_threads_are_the_cores_this_process_may_use(tiny_bundle: Path, name: str) -> None:
    opened, before = Bundle.open(tiny_bundle), os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert ", CPU, 1 thread" in open_engine(opened, name).description
    finally:
        os.sched_setaffinity(0, before)


def test_graphs_bound_to_fixed_addresses_compute_the_same(tiny_bundle: Path, starting_bundle: Path) -> None:
    """Tests the CUDA engine's logic on the CPU provider: copy inputs, run, return bound outputs."""
    for folder in (tiny_bundle, starting_bundle):
        opened = Bundle.open(folder)
        bound = BoundEngine(opened, onnxruntime.CPU, "cpu", {})
        decoders = [Decoder(opened, engine) for engine in (open_engine(opened, "onnxruntime-cpu"), bound)]
        for window in np.random.default_rng(2).standard_normal((3, 30, 6)).astype(np.float32):
            for sampler in opened.spec.samplers:
                one, other = (decoder.decode(window, sampler).image for decoder in decoders)
                np.testing.assert_array_equal(one, other)
        with pytest.raises(EngineError, match=r"not bound for inputs of .*\(1, 29, 6\)"):
            bound.run("brain", {"window": bound.put(np.zeros((1, 29, 6), np.float32))})


@pytest.mark.gpu
def test_cuda_computes_what_the_cpu_does(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    candidate = probe(opened, "onnxruntime-cuda")
    if not candidate.available:
        pytest.skip(candidate.reason)
    window = np.random.default_rng(3).standard_normal((30, 6)).astype(np.float32)
    for sampler in opened.spec.samplers:
        images = [
            Decoder(opened, open_engine(opened, name)).decode(window, sampler).image.astype(int)
            for name in ("onnxruntime-cpu", "onnxruntime-cuda")
        ]
        assert np.abs(images[0] - images[1]).max() <= 1


def test_the_engines_of_a_cpu_agree(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    window = np.random.default_rng(3).standard_normal((30, 6)).astype(np.float32)
    images = [
        Decoder(opened, open_engine(opened, name)).decode(window).image.astype(int)
        for name in ("onnxruntime-cpu", "openvino")
    ]
    assert np.abs(images[0] - images[1]).max() <= 1


def test_bf16_is_for_cpus_that_have_it_and_close_to_f32(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(tiny_bundle)
    assert "openvino-bf16" not in AUTO_ORDER, "it is never chosen unasked"
    if probe(opened, "openvino-bf16").available:
        window = np.random.default_rng(3).standard_normal((30, 6)).astype(np.float32)
        engine = open_engine(opened, "openvino-bf16")
        assert engine.description.endswith(", bf16")
        exact, close = (
            Decoder(opened, each).decode(window).image.astype(int)
            for each in (open_engine(opened, "openvino"), engine)
        )
        assert 0 < np.abs(exact - close).max() < 20
    monkeypatch.setattr(openvino, "_has_bf16", lambda: False)
    with pytest.raises(EngineError, match="expected a CPU with bf16 instructions"):
        open_engine(opened, "openvino-bf16")


def test_an_unknown_engine_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match=f"expected an engine of {', '.join(ENGINES)}, got 'abacus'"):
        open_engine(Bundle.open(tiny_bundle), "abacus")


def test_a_missing_cuda_device_is_an_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "_has_cuda_device", lambda: False)
    opened = Bundle.open(tiny_bundle)
    with pytest.raises(EngineError, match="expected a CUDA device, found none"):
        open_engine(opened, "onnxruntime-cuda")
    assert not probe(opened, "onnxruntime-cuda").available


def test_auto_takes_the_first_available_engine_and_names_the_others(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "_has_cuda_device", lambda: False)
    monkeypatch.setitem(choose._MODULES, "tensorrt", "realtime.decoding.engines.none_such")
    caplog.set_level("INFO")
    opened = Bundle.open(tiny_bundle)
    description = open_engine(opened, "auto").description
    candidates = {name: probe(opened, name) for name in AUTO_ORDER}
    before = list(AUTO_ORDER)[: [candidates[name].available for name in AUTO_ORDER].index(True)]
    assert before[:2] == ["tensorrt", "onnxruntime-cuda"]
    for name in before:
        assert f"{name}: {candidates[name].reason}" in description
        assert f"engine {name} is passed over: {candidates[name].reason}" in caplog.text
    assert "none_such" in candidates["tensorrt"].reason
    assert "pip install tensorrt" in candidates["tensorrt"].reason
    assert "onnxruntime" in candidates["onnxruntime-cpu"].versions


def test_openvino_without_its_cpu_plugin_is_passed_over(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("cannot load library libopenvino_intel_cpu_plugin.so")

    monkeypatch.setattr(onnxruntime_cuda, "_has_cuda_device", lambda: False)
    monkeypatch.setitem(choose._MODULES, "tensorrt", "realtime.decoding.engines.none_such")
    monkeypatch.setattr(openvino, "_load_cpu_plugin", fail)
    monkeypatch.setattr(openvino, "cpu_core", openvino.cpu_core.__wrapped__)  # not the core that was loaded
    opened = Bundle.open(tiny_bundle)
    assert "libopenvino_intel_cpu_plugin" in probe(opened, "openvino-bf16").reason
    description = open_engine(opened, "auto").description
    assert description.startswith("ONNX Runtime")
    assert "openvino: OpenVINO's plugin for the CPU does not load: cannot load library" in description


def test_an_engine_that_does_not_open_is_passed_over(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device exists, but the provider does not load: the CPU is used, and the error is reported."""
    monkeypatch.setattr(onnxruntime_cuda, "_has_cuda_device", lambda: True)
    opened = Bundle.open(tiny_bundle)
    with pytest.raises(EngineError) as failed:
        open_engine(opened, "onnxruntime-cuda")
    description = open_engine(opened, "auto").description
    assert ", CPU, " in description
    assert f"onnxruntime-cuda: {failed.value}" in description


@pytest.mark.parametrize("elsewhere", ["notes/weights.bin", "weights.txt"])
@pytest.mark.parametrize("held_by", ["initializer", "attribute"])
def test_weights_in_files_that_the_bundle_does_not_list_are_refused(
    name: str, folder: Path, elsewhere: str, held_by: str
) -> None:
    """The bundle's digest does not cover such files, so changes would not be detected."""
    model = onnx.load(folder / "brain.onnx")
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == "brain_weights")
    (folder / elsewhere).parent.mkdir(exist_ok=True)
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights), weights.name))
    (folder / elsewhere).write_bytes(weights.raw_data)
    onnx.external_data_helper.set_external_data(weights, elsewhere)
    weights.ClearField("raw_data")
    if held_by == "attribute":
        constant = helper.make_node("Constant", [], ["brain_weights"], value=weights)
        model.graph.node.insert(0, constant)
        model.graph.initializer.remove(weights)
    (folder / "brain.onnx").write_bytes(model.SerializeToString())
    relist(folder, "brain.onnx")
    assert weight_files(folder / "brain.onnx") == {elsewhere}
    with pytest.raises(EngineError, match=rf"found some in {elsewhere}|ONNX graph that"):
        open_engine(Bundle.open(folder), name)


def test_external_weights_of_any_graph_are_listed(tiny_bundle: Path) -> None:
    assert [weight_files(tiny_bundle / f"{graph}.onnx") for graph in ("brain", "denoise", "vae")] == [
        set()
    ] * 3


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_graph_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    for content in (data, b"\x3a" * 5_000 + data, b"\x3a\xff\xff\xff\xff\x0f" + data):
        path.write_bytes(content)
        with contextlib.suppress(ValueError):
            assert isinstance(weight_files(path), set)


def test_an_engine_that_opens_and_fails_in_use_is_passed_over(tiny_bundle: Path) -> None:
    """As on a device whose memory is full, or with mismatched libraries."""
    opened = Bundle.open(tiny_bundle)
    tried: list[str] = []
    failed: list[weakref.ref[Engine]] = []

    def use(engine: Engine) -> str:
        tried.append(engine.description)
        assert not [each for each in failed if each()], "it still holds the device's memory"
        if len(tried) == 1:
            failed.append(weakref.ref(engine))
            raise EngineError("brain failed: out of memory")
        return "a decoder"

    first = open_engine(opened, "auto").description
    name, engine, used = open_and_use(opened, "auto", use)
    assert used == "a decoder"
    assert first.startswith(tried[0])
    assert tried[1] != tried[0]
    assert "brain failed: out of memory" in engine.description
    assert name == AUTO_ORDER[-1]
    tried.clear()
    with pytest.raises(EngineError, match="out of memory"):  # what was asked for is not replaced
        open_and_use(opened, name, use)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x0a" * 50])
@pytest.mark.parametrize("graph", ["brain", "denoise", "vae"])
def test_a_file_that_is_not_a_graph_is_named(name: str, folder: Path, graph: str, content: bytes) -> None:
    (folder / f"{graph}.onnx").write_bytes(content)
    relist(folder, f"{graph}.onnx")
    with pytest.raises(EngineError, match=rf"{graph}.onnx: (inputs: )?expected"):
        open_engine(Bundle.open(folder), name)


def test_a_truncated_graph_is_named(name: str, folder: Path) -> None:
    path = folder / "brain.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    relist(folder, "brain.onnx")
    with pytest.raises(EngineError, match=r"brain.onnx: expected an ONNX graph"):
        open_engine(Bundle.open(folder), name)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"latent_shape": (4, 8, 16)}, r"denoise.onnx: inputs: expected .*\(1, 4, 8, 16\)"),
        ({"condition_shape": (2, 8)}, r"brain.onnx: outputs: expected .*\(1, 2, 8\)"),
        ({"image_size_px": (64, 64)}, r"vae.onnx: outputs: expected .*\(64, 64, 3\)"),
    ],
)
def test_graphs_that_do_not_fit_the_specification_are_refused(
    name: str, folder: Path, changes: dict[str, tuple[int, ...]], named: str
) -> None:
    np.save(folder / "null_condition.npy", np.zeros(changes.get("condition_shape", (2, 4)), np.float32))
    relist(folder, "null_condition.npy")
    spec = bundle_spec.decode_spec((folder / "bundle.json").read_bytes())
    bundle_spec.write_spec(folder, msgspec.structs.replace(spec, **changes))
    with pytest.raises(EngineError, match=named):
        open_engine(Bundle.open(folder), name)


def test_a_graph_that_no_decoder_uses_is_refused(name: str, folder: Path) -> None:
    spec = bundle_spec.decode_spec((folder / "bundle.json").read_bytes())
    graphs = {**spec.graphs, "surplus": spec.graphs["brain"]}
    bundle_spec.write_spec(folder, msgspec.structs.replace(spec, graphs=graphs))
    with pytest.raises(EngineError, match="expected vae or a decoder's graph, got 'surplus'"):
        open_engine(Bundle.open(folder), name)


def test_a_run_that_fails_names_its_graph(name: str, tiny_bundle: Path) -> None:
    engine = open_engine(Bundle.open(tiny_bundle), name)
    with pytest.raises(
        EngineError, match=r"brain failed on ONNX Runtime|brain.onnx: expected a graph for inputs of .*29"
    ):
        engine.run("brain", {"window": engine.put(np.zeros((1, 29, 6), np.float32))})


def test_weights_stored_as_float16_run(name: str, folder: Path) -> None:
    path = folder / "brain.onnx"
    model = onnx.load(path)
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == "brain_weights")
    exact = numpy_helper.to_array(weights)
    weights.CopyFrom(numpy_helper.from_array(exact.astype(np.float16), "half_weights"))
    cast = helper.make_node("Cast", ["half_weights"], ["brain_weights"], to=TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    onnx.save(model, path)
    relist(folder, "brain.onnx")
    engine = open_engine(Bundle.open(folder), name)
    window = np.random.default_rng(0).standard_normal((1, 30, 6)).astype(np.float32)
    condition = engine.get(engine.run("brain", {"window": engine.put(window)})["condition"])
    np.testing.assert_allclose(condition, np.tanh(window.reshape(1, -1) @ exact).reshape(1, 2, 4), atol=5e-3)


@pytest.mark.parametrize("made", ["tiny_bundle", "starting_bundle"])
def test_signatures_name_every_graph_of_the_format(made: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(made)
    spec = Bundle.open(folder).spec
    for name in spec.graphs:
        inputs, outputs = signature(spec, name)
        graph = onnx.load(folder / f"{name}.onnx").graph
        assert [tensor.name for tensor in inputs] == [value.name for value in graph.input]
        assert [tensor.name for tensor in outputs] == [value.name for value in graph.output]
