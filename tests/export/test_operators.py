"""Every operator of every exported graph is one that TensorRT's parser lists, on the types it lists."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from export.errors import ExportError
from export.graphs.node_names import FLOAT32_NODES
from export.tensorrt_plans.operators import typed_nodes, unsupported

from .conftest import DEMO, DEMO_GRAPHS

TABLE = Path(__file__).parents[2] / "export" / "tensorrt_operators.toml"
GRAPHS = ("brain", "denoise", "vae")


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_exported_graphs_hold_what_tensorrt_takes(traced: Path, graph: str) -> None:
    nodes = typed_nodes(traced / f"{graph}.onnx")
    assert len(nodes) > 10
    assert unsupported(nodes) == []


@pytest.mark.parametrize("graph", GRAPHS)
def test_what_a_float16_graph_has_in_float32_is_what_the_export_notes(traced: Path, graph: str) -> None:
    """But for casts, which touch both, and shapes, which are no numbers."""
    path = traced / f"{graph}.onnx"
    notes = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    nodes = [node for node in typed_nodes(path) if node.operator not in ("Cast", "Shape")]
    if notes["precision"] == "float32":
        assert not any("float16" in node.data for node in nodes)
        return
    noted = set(notes[FLOAT32_NODES].split())
    assert {node.name for node in nodes if "float" in node.data} == noted & {node.name for node in nodes}


@pytest.mark.parametrize("graph", DEMO_GRAPHS)
def test_the_demos_graphs_hold_what_tensorrt_takes(graph: str) -> None:
    assert unsupported(typed_nodes(DEMO / f"{graph}.onnx")) == []


def write(path: Path, nodes: list[onnx.NodeProto], types: dict[str, int], **options: Any) -> Path:
    """A graph from ``x`` to ``y``, both [2, 3]."""
    inputs, outputs = (
        [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), [2, 3])]
        for name in ("x", "y")
    )
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("house", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


def node(operator: str, *names: str, **attributes: Any) -> onnx.NodeProto:
    *inputs, output = names
    return helper.make_node(operator, inputs, [output], name=f"node_{operator}", **attributes)


DOUBLE = {"x": TensorProto.DOUBLE, "y": TensorProto.DOUBLE}
UINT8: dict[str, int] = {"y": TensorProto.UINT8}


@pytest.mark.parametrize(
    ("nodes", "types", "said"),
    [
        ([node("Det", "x", "y")], {}, "node_Det (Det): TensorRT's parser does not have this operator"),
        (
            [node("Erf", "x", "y", domain="house")],
            {},
            "node_Erf (Erf): TensorRT's parser does not have this operator",
        ),
        (
            [node("Sin", "x", "y")],
            DOUBLE,
            "node_Sin (Sin): computes on double, TensorRT only on bfloat16, float, float16",
        ),
        (
            [node("Cast", "x", "z", to=TensorProto.UINT8), node("Identity", "z", "y")],
            UINT8,
            "node_Cast (Cast): has uint8 inside the graph; TensorRT has it only at inputs and outputs",
        ),
    ],
)
def test_what_tensorrt_does_not_take_is_named(
    tmp_path: Path, nodes: list[onnx.NodeProto], types: dict[str, int], said: str
) -> None:
    lines = unsupported(typed_nodes(write(tmp_path / "graph.onnx", nodes, types)))
    assert said in lines


def test_a_cast_to_uint8_may_end_a_graph(tmp_path: Path) -> None:
    cast = node("Cast", "x", "y", to=TensorProto.UINT8)
    assert unsupported(typed_nodes(write(tmp_path / "graph.onnx", [cast], UINT8))) == []


def test_shapes_indices_and_truth_values_are_no_data(tmp_path: Path) -> None:
    """Resize lists no int64 and Equal no bool, which are its sizes and its output."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Resize", "x", "", "", "shape", "z"),
        node("Equal", "x", "z", "same"),
        node("Where", "same", "x", "z", "y"),
    ]
    found = typed_nodes(write(tmp_path / "graph.onnx", nodes, {}))
    assert [each.data for each in found] == [{"float"}] * 4
    assert unsupported(found) == []


def test_a_file_that_is_no_graph_is_named(tmp_path: Path) -> None:
    (tmp_path / "vae.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"vae\.onnx: cannot read an ONNX graph"):
        typed_nodes(tmp_path / "vae.onnx")


def test_the_table_has_every_operator_once_and_says_of_which_release() -> None:
    table = tomllib.loads(TABLE.read_text())
    operators = [operator for group in table["group"] for operator in group["operators"]]
    assert len(operators) == len(set(operators)) == 159
    assert table["tensorrt"] == "11.1"
    known = {name.lower() for name in TensorProto.DataType.keys()} | {"float8", "float4"}
    assert {kind for group in table["group"] for kind in group["types"]} <= known
