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

import pytest

from realtime.bundle import Bundle
from realtime.engines import signature

from .conftest import DEMO, DEMO_GRAPHS, Exported

pytestmark = pytest.mark.skipif(
    not find_spec("tensorrt_rtx"), reason="TensorRT-RTX is published for x86-64 Linux only"
)
SCRIPT = Path(__file__).with_name("build_with_rtx.py")


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


def check(bundle: Bundle, graph: str, built: dict[str, Any]) -> None:
    """The network has the edges of the format, the profile of its free dimension, and strong types."""
    inputs, outputs = signature(bundle.spec, graph)
    expected = {
        tensor.name: [tensor.dtype, [size if isinstance(size, int) else -1 for size in tensor.shape]]
        for tensor in (*inputs, *outputs)
    }
    assert built["tensors"] == expected
    assert built["is_strongly_typed"]
    assert built["bytes"] > 10_000
    shape = list(bundle.spec.condition_shape)
    profile = {"conditions": [[n, *shape] for n in (1, 2, 2)], "weights": [[1], [2], [2]]}
    assert built["profiles"] == ([profile] if graph == "denoise" else [])


def test_the_exported_graphs_are_built(exported: Exported, tmp_path: Path) -> None:
    bundle = exported.bundle
    built = build(tmp_path, *(bundle.graph_path(graph) for graph in bundle.spec.graphs))
    assert built.keys() == bundle.spec.graphs.keys()
    for graph, found in built.items():
        check(bundle, graph, found)


@pytest.mark.slow
@pytest.mark.parametrize("graph", DEMO_GRAPHS)
def test_the_demos_graphs_are_built(graph: str, tmp_path: Path) -> None:
    bundle = Bundle.open(DEMO)
    check(bundle, graph, build(tmp_path, bundle.graph_path(graph))[graph])


def test_a_graph_that_tensorrt_does_not_take_is_an_error(tmp_path: Path) -> None:
    """Else a build that says nothing would pass for a good one."""
    (tmp_path / "vae.onnx").write_bytes(b"no graph")
    with pytest.raises(AssertionError, match=r"vae\.onnx: expected a graph that TensorRT .* parses"):
        build(tmp_path, tmp_path / "vae.onnx")
