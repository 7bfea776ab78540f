"""TensorRT's own parser and builder take every graph, on a machine without a GPU.

TensorRT-RTX parses and builds without a device; what it builds does not run here, and it is no TensorRT 11:
a gate against graphs that TensorRT does not take, no proof that they run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import psutil
import pytest

from export.tensorrt_plans.operators import typed_nodes, unsupported
from train.recipe import read_recipe

from .conftest import DEMO, DEMO_GRAPHS, trace_graphs

pytestmark = pytest.mark.skipif(
    not find_spec("tensorrt_rtx"), reason="TensorRT-RTX is published for x86-64 Linux only"
)
GRAPHS = ("brain", "denoise", "vae")
FULL_SIZE_BYTES = 8 * 2**30
"""Memory that tracing and building the paper's model in float16 takes."""
SCRIPT = Path(__file__).with_name("build_with_rtx.py")


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the paper's model in float16, untrained; for 15 724 voxels."""
    free = psutil.virtual_memory().available
    if free < FULL_SIZE_BYTES:
        pytest.skip(f"needs {FULL_SIZE_BYTES / 1e9:.0f} GB of free memory, found {free / 1e9:.0f}")
    folder = tmp_path_factory.mktemp("full-size")
    trace_graphs(folder, read_recipe(Path("paper")), 15_724, (4, 64, 64), is_half=True)
    return folder


def build(folder: Path, *graphs: Path, timeout_s: int = 600) -> dict[str, Any]:
    """What the builder made of graphs, by name; raises with all it said where it made nothing."""
    out, root = folder / "built.json", Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, SCRIPT, out, *graphs],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    built: dict[str, Any] = json.loads(out.read_text())
    return built


def check(path: Path, built: dict[str, Any]) -> None:
    """The network has the graph's edges, the profile of its free dimension, and strong types."""
    graph = onnx.load(path, load_external_data=False).graph
    assert built["tensors"] == {value.name: edge(value) for value in (*graph.input, *graph.output)}
    assert built["is_strongly_typed"]
    assert built["bytes"] > 10_000
    assert built["is_timed"]
    profile = {}
    if path.stem == "denoise":
        *_, tokens, width = built["tensors"]["conditions"][1]
        profile = {"conditions": [[n, tokens, width] for n in (1, 2, 2)], "weights": [[1], [2], [2]]}
    assert built["profiles"] == ([profile] if profile else [])


def edge(value: onnx.ValueInfoProto) -> list[Any]:
    tensor = value.type.tensor_type
    shape = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    return [onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape]


def test_the_exported_graphs_are_built_in_their_precision(traced: Path, tmp_path: Path) -> None:
    paths = [traced / f"{graph}.onnx" for graph in GRAPHS]
    built = build(tmp_path, *paths)
    for path in paths:
        check(path, built[path.stem])
        types = built[path.stem]["types"]
        if "float16" in traced.name:
            assert types["HALF"] > types["FLOAT"]
        else:
            assert types["HALF"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("graph", DEMO_GRAPHS)
def test_the_demos_graphs_are_built(graph: str, tmp_path: Path) -> None:
    path = DEMO / f"{graph}.onnx"
    check(path, build(tmp_path, path)[graph])


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_papers_model_is_built_in_float16(full_size: Path, tmp_path: Path, graph: str) -> None:
    path = full_size / f"{graph}.onnx"
    assert unsupported(typed_nodes(path)) == []
    built = build(tmp_path, path, timeout_s=3600)[graph]
    check(path, built)
    assert built["types"]["HALF"] > built["types"]["FLOAT"]


def test_a_graph_that_tensorrt_does_not_take_is_an_error(tmp_path: Path) -> None:
    """Else a build that says nothing would pass for a good one."""
    (tmp_path / "vae.onnx").write_bytes(b"no graph")
    with pytest.raises(AssertionError, match=r"vae\.onnx: expected a graph that TensorRT .* parses"):
        build(tmp_path, tmp_path / "vae.onnx")
