from __future__ import annotations

import copy
import gc
import re
import weakref
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from onnxscript import ir

from export.graphs import onnx_model
from export.graphs.graphs import Graph, denoise_graph
from export.graphs.node_names import FLOAT32_NODES
from export.graphs.onnx_model import (
    Runner,
    onnx_runner,
    outputs_of,
    save,
    store_compactly,
    torch_runner,
    trace,
)
from export.graphs.samplers import ddim
from export.parity.limits import compare, relative
from realtime.bundle.bundle import Bundle
from realtime.decoding.engines.signature import signature
from train.model.base_model import make_unet
from train.model.diffusion import make_scheduler

from .conftest import STORED_ELEMENTS, Exported, tiny_recipe

SAMPLER = ddim(20, 3.0)


@pytest.fixture(autouse=True)
def _tiny_weights_are_big(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_model, "MIN_STORED_ELEMENTS", STORED_ELEMENTS)


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(3)
    base = msgspec.structs.replace(tiny_recipe().base, unet_widths=(32,))
    unet = make_unet(base).eval().requires_grad_(False)
    alphas = make_scheduler().alphas_cumprod
    return denoise_graph(unet, alphas, SAMPLER, torch.randn(2, 3, 8), (4, 16, 16), seed=0)


@pytest.fixture(scope="module")
def traced(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The denoise graph in fp32, traced with two conditions."""
    path = tmp_path_factory.mktemp("traced") / "denoise.onnx"
    save(trace(graph), path)
    return path


@pytest.fixture
def stored(traced: Path, tmp_path: Path) -> Path:
    model = ir.load(traced)
    assert store_compactly(model) > 20
    save(model, tmp_path / "denoise.onnx")
    return tmp_path / "denoise.onnx"


def apart(graph: Graph, found: Runner, expected: Runner) -> dict[str, float]:
    return relative(compare(graph, outputs_of(graph, found), outputs_of(graph, expected)))


def with_conditions(graph: Graph, n: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(n)
    weights = torch.randn(n, generator=draw)
    return graph.cases[0] | {"conditions": torch.randn(n, 3, 8, generator=draw), "weights": weights}


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_number_of_conditions_is_free(graph: Graph, traced: Path, n: int) -> None:
    inputs = with_conditions(graph, n)
    found, expected = onnx_runner(traced)(inputs), torch_runner(graph)(inputs)
    for name in ("next", "prediction"):
        np.testing.assert_allclose(
            found[name], expected[name], rtol=1e-4, atol=1e-4 * np.abs(expected[name]).max()
        )


def test_stored_weights_are_the_rounded_ones_and_arithmetic_stays_exact(graph: Graph, stored: Path) -> None:
    """The oracle is the module itself with its big weights rounded to fp16."""
    module = copy.deepcopy(graph.module)
    for weight in module.parameters():
        if weight.dim() >= 2 and weight.numel() >= STORED_ELEMENTS:
            weight.copy_(weight.half().float())
    rounded = Graph(name=graph.name, module=module, outputs=graph.outputs, cases=graph.cases)
    errors = apart(graph, onnx_runner(stored), torch_runner(rounded))
    rounding = apart(graph, onnx_runner(stored), torch_runner(graph))
    assert max(errors.values()) < 1e-5
    assert max(rounding.values()) > 10 * max(errors.values()), "rounding must show, else nothing is tested"


def test_small_weights_vectors_and_schedules_keep_their_precision(stored: Path) -> None:
    weights = ir.load(stored).graph.initializers.values()
    for value in weights:
        assert value.shape is not None
        shape = value.shape.numpy()
        if value.dtype == ir.DataType.FLOAT16:
            assert len(shape) >= 2
            assert np.prod(shape) >= STORED_ELEMENTS
        elif value.dtype == ir.DataType.FLOAT:
            assert len(shape) < 2 or np.prod(shape) < STORED_ELEMENTS
    exact = [
        value.const_value.numpy()
        for value in weights
        if value.dtype == ir.DataType.FLOAT and value.const_value
    ]
    alphas = make_scheduler().alphas_cumprod.double()
    for table in (alphas.sqrt(), (1 - alphas).sqrt()):
        assert any(array.shape == (1000,) and np.array_equal(array, table.float().numpy()) for array in exact)


def test_the_file_is_about_half_as_big(traced: Path, stored: Path) -> None:
    def bytes_of(path: Path) -> int:
        values = ir.load(path).graph.initializers.values()
        return sum(value.const_value.nbytes for value in values if value.const_value)

    big = sum(
        value.const_value.nbytes
        for value in ir.load(stored).graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT16 and value.const_value
    )
    assert bytes_of(stored) == bytes_of(traced) - big
    assert big > 0.4 * bytes_of(traced)


def test_the_runtime_widens_weights_once_while_it_loads(stored: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(stored, options, providers=["CPUExecutionProvider"])
    loaded = ir.load(tmp_path / "loaded.onnx").graph
    assert not any(value.dtype == ir.DataType.FLOAT16 for value in loaded.initializers.values())


def test_numbers_too_large_for_fp16_are_left_as_they_are(traced: Path, tmp_path: Path) -> None:
    model = ir.load(traced)
    name, value = next(
        (name, value)
        for name, value in model.graph.initializers.items()
        if value.shape is not None and len(value.shape) == 4 and value.const_value
    )
    assert value.const_value is not None
    large = value.const_value.numpy().copy()
    large.flat[0] = 1e5
    value.const_value = ir.tensor(large, name=name)
    store_compactly(model)
    save(model, tmp_path / "large.onnx")
    kept = ir.load(tmp_path / "large.onnx").graph.initializers[name]
    assert kept.dtype == ir.DataType.FLOAT
    assert kept.const_value is not None
    assert kept.const_value.numpy().flat[0] == 1e5


def test_no_trace_of_the_machine_is_left(traced: Path, exported: Exported) -> None:
    package = Path(torch.__file__).parent.parent
    for path in (traced, *exported.folder.glob("*.onnx")):
        content = path.read_bytes()
        for place in (package, Path(__file__).parent.parent.parent):
            assert str(place).encode() not in content, path
        assert b"site-packages" not in content
        assert b".py" not in content
        assert b"pkg.torch" not in content


def test_names_say_where_in_the_model_a_node_stands(graph: Graph, traced: Path) -> None:
    model = ir.load(traced)
    modules = {name for name, _ in graph.module.named_modules()}
    names = [str(node.name) for node in model.graph]
    assert len(set(names)) == len(names)
    counts = {"Conv": 0, "LayerNormalization": 0, "Softmax": 0}
    for node in model.graph:
        module, _, kind = str(node.name).rpartition(f".{node.op_type}")
        assert module in modules or module == "denoise", node.name
        assert re.fullmatch(r"(\.\d+)?", kind), node.name
        if node.op_type in counts:
            counts[node.op_type] += 1
            assert module.startswith("unet."), node.name
    assert min(counts.values()) > 0
    weights = {f"{name}.constant" for name in names} | {name for name, _ in graph.module.named_parameters()}
    buffers = {name for name, _ in graph.module.named_buffers()}
    for name in model.graph.initializers:
        assert name in weights | buffers or re.fullmatch(r".*\.constant\.\d+", name), name
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.doc_string, value.name


def test_metadata_says_whose_model_it_is(exported: Exported) -> None:
    stages = {stage.name: stage for stage in exported.bundle.spec.provenance}
    for name in ("brain", "denoise", "vae"):
        model = ir.load(exported.bundle.graph_path(name))
        assert model.graph.name == name
        assert model.doc_string
        assert model.metadata_props == {
            "precision": "float32",
            "subject": "1",
            "window": "6 volumes, from 3 after the picture's onset",
            "tr_s": "1.3333",
            "checkpoint_sha256": stages["checkpoint"].sha256,
            "base_model_sha256": stages["base model"].sha256,
            "weights_sha256": stages["merged"].sha256,
        }


def test_in_fp16_the_network_is_fp16_and_what_is_around_it_is_not(graph: Graph, tmp_path: Path) -> None:
    half = Graph(
        name=graph.name,
        module=copy.deepcopy(graph.module),
        outputs=graph.outputs,
        cases=graph.cases,
        free=graph.free,
    )
    half.module.to_half()
    model = trace(half)
    save(model, tmp_path / "half.onnx")
    exact = outputs_of(graph, torch_runner(graph))
    for found in (onnx_runner(tmp_path / "half.onnx"), torch_runner(half)):
        errors = relative(compare(graph, outputs_of(graph, found), exact))
        assert 1e-5 < errors["noise"] < 1e-2
    assert all(
        value.dtype in (ir.DataType.FLOAT, ir.DataType.INT64)
        for value in (*model.graph.inputs, *model.graph.outputs)
    )
    listed = set(model.metadata_props[FLOAT32_NODES].split())
    for node in model.graph:
        is_float32 = any(value.dtype == ir.DataType.FLOAT for value in node.outputs)
        assert is_float32 == (str(node.name) in listed)
        if str(node.name).startswith("unet.") and not str(node.name).startswith("unet.time_proj."):
            assert not is_float32, node.name
    assert {"denoise.ReduceSum", "denoise.Div", "unet.time_proj.Sin"} <= listed
    kinds = {node.op_type for node in model.graph}
    assert "GroupNormalization" in kinds, "whose statistics are fp32"
    assert "Attention" not in kinds, "which TensorRT 10.12 does not know"


def test_of_a_graph_that_was_written_no_weight_is_held(graph: Graph, tmp_path: Path) -> None:
    """Neither by the module, nor by torch's exporter, nor by the optimizer behind it."""
    module = copy.deepcopy(graph.module)
    written = Graph(name=graph.name, module=module, outputs=graph.outputs, cases=graph.cases, free=graph.free)
    weights = [weakref.ref(weight) for weight in module.get_submodule("unet").parameters()]
    model = trace(written)
    save(model, tmp_path / "denoise.onnx")
    onnx_model.drop_weights(model)
    module.release()
    gc.collect()
    assert len(weights) > 50
    assert not any(weight() is not None for weight in weights)
    assert not module.signal.is_meta, "parity still needs the schedule"


def test_very_big_weights_lie_beside_the_graph(
    graph: Graph, traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_model, "MAX_INLINE_BYTES", 1000)
    model = ir.load(traced)
    before = onnx_model.files_sha256(traced)
    path = tmp_path / "denoise.onnx"
    save(model, path)
    assert path.stat().st_size < traced.stat().st_size / 2
    assert (tmp_path / "denoise.onnx.data").exists()
    assert apart(graph, onnx_runner(path), onnx_runner(traced)) == {"next": 0.0, "noise": 0.0}
    with_data = onnx_model.files_sha256(path)
    (tmp_path / "denoise.onnx.data").write_bytes(b"changed")
    assert len({before, with_data, onnx_model.files_sha256(path)}) == 3


@pytest.mark.parametrize("name", ["brain", "denoise", "vae"])
def test_inputs_and_outputs_are_those_of_the_format(exported: Exported, name: str) -> None:
    bundle: Bundle = exported.bundle
    listed = bundle.spec.graphs[name]
    assert (listed.inputs, listed.outputs) == signature(bundle.spec, name)
    assert onnx_model.signature_of(ir.load(bundle.graph_path(name))) == (listed.inputs, listed.outputs)
