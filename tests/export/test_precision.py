"""An engine that does not compute in the types of its graph is found out, in what the inspector says of it.

No inspector runs without a GPU: its words are made up here from a real graph, in the form that TensorRT's
documentation and public logs of releases 10 and 11 show. Tests marked ``gpu`` read real ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.errors import ExportError
from export.tensorrt_plans.operators import Node, typed_nodes
from export.tensorrt_plans.precision import check_graph, check_precisions

HALF, FLOAT = "float16", "float"
PLAN = Path("denoise.plan")
Layer = dict[str, Any]


def node(name: str, operator: str, *data: str) -> Node:
    return Node(name=name, operator=operator, domain="", data=frozenset(data), inner=frozenset(data))


NODES = [
    node("enter", "Cast", FLOAT, HALF),
    node("conv_in", "Conv", HALF),
    node("norm", "InstanceNormalization", HALF),
    node("query", "MatMul", HALF),
    node("scores", "MatMul", HALF),
    node("softmax", "Softmax", HALF),
    node("silu", "Mul", HALF),
    node("leave", "Cast", HALF, FLOAT),
    node("guidance", "Mul", FLOAT),
]


def layer(name: str, inputs: list[str], outputs: list[str], *sources: str, kind: str = "kgen") -> Layer:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": f"in{i}", "Format/Datatype": each} for i, each in enumerate(inputs)],
        "Outputs": [{"Name": f"out{i}", "Format/Datatype": each} for i, each in enumerate(outputs)],
        "Metadata": "\x1e".join(f"[ONNX Layer: {source}]" for source in sources),
        "TacticName": "some kernel",
        "StreamId": 0,
    }


def sound() -> list[Layer]:
    """What a float16 graph should become: casts and sums fused to products, statistics apart in float32."""
    return [
        layer("copy", ["Float"], ["Float"], kind="Reformat"),
        layer("conv_in", ["Float"], ["Half"], "enter", "conv_in", kind="CaskConvolution"),
        layer("statistics", ["Half"], ["Float", "Float"], "norm"),
        layer("normalized", ["Half", "Float", "Float"], ["Half"], "norm", "silu"),
        layer("query", ["Half"], ["Half"], "query", kind="gemm"),
        layer("scores", ["Half", "Half"], ["Float"], "scores", "softmax", kind="fusion"),
        layer("silu", ["Half"], ["Half"], "silu"),
        layer("conv_out", ["Half"], ["Float"], "query", "leave", kind="gemm"),
        layer("guidance", ["Float", "Float"], ["Float"], "guidance"),
        {"Name": "signal", "LayerType": "signal", "Inputs": [], "Outputs": []},
    ]


def check(layers: list[Any], precision: str = "float16") -> tuple[dict[str, int], tuple[str, ...]]:
    found = check_precisions(PLAN, json.dumps({"Layers": layers, "Bindings": ["x"]}), NODES, precision)
    return found.layers, found.float32


def test_what_the_graph_has_in_float32_may_be_in_float32() -> None:
    counts, named = check(sound())
    assert counts == {"float16": 2, "float32": 7, "other": 1}
    assert named == ("copy", "conv_in", "statistics", "normalized", "scores", "conv_out", "guidance")


def test_types_are_also_read_from_phrases() -> None:
    phrases = {"Half": "Channel major FP16 format where channel % 8 == 0", "Float": "Row major linear FP32"}
    layers = json.loads(json.dumps(sound()))
    for each in layers:
        for tensor in each["Inputs"] + each["Outputs"]:
            tensor["Format/Datatype"] = phrases[tensor["Format/Datatype"]]
    assert check(layers) == check(sound())


def in_float32(layers: list[Layer], name: str) -> None:
    (wrong,) = (each for each in layers if each["Name"] == name)
    for tensor in wrong["Inputs"] + wrong["Outputs"]:
        tensor["Format/Datatype"] = "Float"


@pytest.mark.parametrize("name", ["query", "silu", "conv_in", "scores", "conv_out"])
def test_a_layer_in_float32_for_no_reason_is_named(name: str) -> None:
    """Also where a cast is fused to it: the product itself must have float16 on one side."""
    layers = sound()
    in_float32(layers, name)
    with pytest.raises(ExportError, match=rf"found float32 in 1 of 10 layers: {name}; no engine was written"):
        check(layers)


def test_an_engine_all_in_float32_is_named_layer_by_layer() -> None:
    layers = sound()
    for name in ("conv_in", "query", "scores", "silu", "conv_out"):
        in_float32(layers, name)
    with pytest.raises(ExportError, match="in 5 of 10 layers: conv_in, query, scores, silu, conv_out;"):
        check(layers)


def test_without_metadata_the_names_of_layers_tell() -> None:
    layers = [layer("conv_in + silu", ["Float"], ["Float"]), layer("leave + guidance", ["Half"], ["Float"])]
    with pytest.raises(ExportError, match=r"in 1 of 2 layers: conv_in \+ silu;"):
        check(layers)


def test_a_layer_from_nowhere_is_named() -> None:
    with pytest.raises(ExportError, match="in 1 of 1 layers: __myl_9;"):
        check([layer("__myl_9", ["Float"], ["Float"], "no such node")])


def test_a_float32_graph_may_be_in_float32() -> None:
    layers = sound()
    in_float32(layers, "query")
    assert check(layers, "float32") == ({"float16": 1, "float32": 8, "other": 1}, ())


@pytest.mark.parametrize("graph", ["brain", "denoise", "vae"])
def test_a_graph_has_its_products_in_its_precision(traced: Path, graph: str) -> None:
    path = traced / f"{graph}.onnx"
    nodes = typed_nodes(path)
    check_graph(path, nodes, "float32")
    if "float16" in traced.name:
        check_graph(path, nodes, "float16")
    else:
        with pytest.raises(
            ExportError, match=r"matrix products in float16, as the bundle says, found .+\.\w+"
        ):
            check_graph(path, nodes, "float16")


@pytest.mark.parametrize(
    "said", ["", "[]", json.dumps({"Layers": ["conv_in", "query"]}), json.dumps({"Bindings": []})]
)
def test_an_inspector_that_gives_no_detail_is_no_proof(said: str) -> None:
    with pytest.raises(ExportError, match=r"denoise\.plan: expected the inspector's detailed list of layers"):
        check_precisions(PLAN, said, NODES, "float16")


def as_of_release_11(layers: list[Layer]) -> list[Layer]:
    """Type and format in a field each."""
    for each in layers:
        for tensor in (*each["Inputs"], *each["Outputs"]):
            tensor["DataType"] = tensor.pop("Format/Datatype")
            tensor["Format"] = "Row major linear (kLINEAR)"
    return layers


def test_release_11_has_types_in_a_field_of_their_own() -> None:
    assert check(as_of_release_11(sound())) == check(sound())
    wrong = sound()
    in_float32(wrong, "silu")
    with pytest.raises(ExportError, match="found float32 in 1 of 10 layers: silu"):
        check(as_of_release_11(wrong))


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_layers_whose_types_cannot_be_read_are_no_proof(precision: str) -> None:
    layers = sound()
    for each in layers:
        for tensor in (*each["Inputs"], *each["Outputs"]):
            tensor["In another way"] = tensor.pop("Format/Datatype")
    with pytest.raises(
        ExportError, match=f"expected layers that compute in {precision}, .* found none among 10"
    ):
        check(layers, precision)


def test_a_move_that_the_compiler_adds_may_be_in_float32_and_nothing_else_of_its_own() -> None:
    check([*sound(), layer("__myl_MoveCast_myl0_0", ["Float"], ["Float"])])
    with pytest.raises(ExportError, match="__myl_MulMove_myl0_1"):
        check([*sound(), layer("__myl_MulMove_myl0_1", ["Float"], ["Float"])])
