"""Lists the operators of an ONNX graph with their types, and those that TensorRT does not support."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from export.errors import ExportError

_TABLE = "tensorrt_operators.toml"
_OWN_DOMAINS = ("", "ai.onnx")
_NO_NUMBERS = {"tensor(int32)", "tensor(int64)", "tensor(bool)"}
"""Types of shapes, indices and booleans: a parameter with no other types is not data."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a graph, with types named as in ``onnx.TensorProto``, in lower case."""

    name: str
    operator: str
    domain: str
    data: frozenset[str]
    """Types of the tensors that it computes on, without shapes, indices and booleans."""
    inner: frozenset[str]
    """Types of those outputs that are not outputs of the graph."""


def typed_nodes(path: Path) -> list[Node]:
    """The nodes of an ONNX file in order, with inferred types; weights in a second file are not read.

    :raises ExportError: the file is not an ONNX graph, or a type cannot be inferred
    """
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    except (OSError, ValueError, DecodeError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path}: cannot read an ONNX graph: {error}; export the bundle again") from error
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    types |= {value.name: value.type.tensor_type.elem_type for value in graph.output}
    types |= {weights.name: weights.data_type for weights in graph.initializer}
    names = {name: TensorProto.DataType.Name(kind).lower() for name, kind in types.items()}
    versions = {opset.domain: opset.version for opset in model.opset_import}
    outputs = {value.name for value in graph.output}
    try:
        return [_typed(node, names, versions.get("", 0), outputs) for node in graph.node]
    except KeyError as error:
        raise ExportError(f"{path}: expected a type for every tensor, found none for {error}") from error


def unsupported(nodes: list[Node]) -> list[str]:
    """One line for each node that TensorRT does not support; empty if it supports all."""
    table, lines = _operators(), []
    for node in nodes:
        where = f"{node.name} ({node.operator})"
        if node.domain not in _OWN_DOMAINS or node.operator not in table:
            lines.append(f"{where}: TensorRT's parser does not have this operator")
            continue
        if unknown := node.data - table[node.operator]:
            known = ", ".join(sorted(table[node.operator]))
            lines.append(f"{where}: computes on {', '.join(sorted(unknown))}, TensorRT only on {known}")
        if "uint8" in node.inner:
            lines.append(f"{where}: has uint8 inside the graph; TensorRT has it only at inputs and outputs")
    return lines


def _typed(node: onnx.NodeProto, types: dict[str, str], opset: int, outputs: set[str]) -> Node:
    given = [(i, types[name]) for i, name in enumerate(node.input) if name]
    made = [(i, types[name]) for i, name in enumerate(node.output) if name]
    if node.domain in _OWN_DOMAINS:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        given = [(i, kind) for i, kind in given if _is_data(schema.inputs, i)]
        data = {kind for _, kind in given} | {kind for i, kind in made if _is_data(schema.outputs, i)}
    else:
        data = {kind for _, kind in (*given, *made)}
    return Node(
        name=node.name,
        operator=node.op_type,
        domain=node.domain,
        data=frozenset(data),
        inner=frozenset(types[name] for name in node.output if name and name not in outputs),
    )


def _is_data(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> bool:
    """Whether a tensor is data that an operator computes on; the last parameter may be variadic.

    It is not data if the operator allows a single type, as for the scales of Resize, or only types of shapes,
    indices and booleans.
    """
    allowed = set(parameters[min(index, len(parameters) - 1)].types)
    return len(allowed) > 1 and not allowed <= _NO_NUMBERS


@cache
def _operators() -> dict[str, frozenset[str]]:
    """Types that TensorRT supports, by operator, from TensorRT's documentation."""
    table = tomllib.loads(files("export").joinpath(_TABLE).read_text(encoding="utf-8"))
    return {
        operator: frozenset(group["types"]) for group in table["group"] for operator in group["operators"]
    }
