"""The operators of an ONNX graph with the types they compute on, and which of them TensorRT does not take."""

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
"""Types of what are shapes, indices and truth values, where an operator allows nothing else."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """An operator of a graph, with types as in ``onnx.TensorProto``, in lower case."""

    name: str
    operator: str
    domain: str
    data: frozenset[str]
    """Types of the tensors it computes on: shapes, indices and truth values are left out."""
    inner: frozenset[str]
    """Types of those of its outputs that are no output of the graph."""


def typed_nodes(path: Path) -> list[Node]:
    """The nodes of an ONNX file in order, their types inferred; weights beside the file are not read.

    :raises ExportError: when it is not read as ONNX, or a type is not to be told
    """
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    except (OSError, ValueError, DecodeError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path}: expected an ONNX graph: {error}; export the bundle again") from error
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
        raise ExportError(f"{path}: expected a type for every tensor, found none of {error}") from error


def unsupported(nodes: list[Node]) -> list[str]:
    """What TensorRT does not take of a graph, a line for each node; empty where it takes all of it."""
    table, lines = _operators(), []
    for node in nodes:
        where = f"{node.name} ({node.operator})"
        if node.domain not in _OWN_DOMAINS or node.operator not in table:
            lines.append(f"{where}: the operator is not among those of TensorRT's parser")
            continue
        if unknown := node.data - table[node.operator]:
            known = ", ".join(sorted(table[node.operator]))
            lines.append(f"{where}: computes on {', '.join(sorted(unknown))}, TensorRT's on {known}")
        if "uint8" in node.inner:
            lines.append(f"{where}: gives uint8 inside the graph; TensorRT has it at the edges only")
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
    """Whether a tensor is one that an operator computes on; the last parameter may take any number.

    It is none where only one type is allowed, as for the scales of Resize, or only what counts.
    """
    allowed = set(parameters[min(index, len(parameters) - 1)].types)
    return len(allowed) > 1 and not allowed <= _NO_NUMBERS


@cache
def _operators() -> dict[str, frozenset[str]]:
    """Types by operator, as TensorRT's documentation lists them."""
    table = tomllib.loads(files("export").joinpath(_TABLE).read_text(encoding="utf-8"))
    return {
        operator: frozenset(group["types"]) for group in table["group"] for operator in group["operators"]
    }
