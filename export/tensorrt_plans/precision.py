"""Checks the precision of a built engine, layer by layer, against the types of its ONNX graph.

TensorRT's networks are strongly typed: a layer computes in the types of the graph. If a float16 graph became
a float32 engine, it would run correctly but several times too slowly, and only this check would notice.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from export.errors import ExportError
from export.tensorrt_plans.operators import Node

_PRODUCTS = {"Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"}
_SUMS = {
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "ReduceMean",
    "ReduceSum",
    "RMSNormalization",
    "Softmax",
}
"""Operators whose sums TensorRT keeps in float32, possibly in separate layers."""
_MOVES = {"Constant", "NoOp", "Reformat"}
_COMPILERS_MOVE = re.compile(r"__myl_(?:Cast|Conc|Copy|Move|Repl|Resh|Slic|Tran)+_")
"""Names of data movements that TensorRT's compiler adds, which name no layer of the graph."""
_MOST_NAMED = 20
_SOURCE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_NAMES = {"Float": "float32", "FP32": "float32", "Half": "float16", "FP16": "float16"}
_NAME = re.compile(r"\b(Float|FP32|Half|FP16)\b")


class _Tensor(msgspec.Struct):
    """A tensor between layers; its type is a word (``Half``) or part of a phrase (``... FP16 format``).

    Releases before 11 have one field for type and format, later ones two.
    """

    either: str = msgspec.field(name="Format/Datatype", default="")
    type_: str = msgspec.field(name="DataType", default="")
    datatype: str = msgspec.field(name="Datatype", default="")
    format: str = msgspec.field(name="Format", default="")

    @property
    def said(self) -> str:
        """The text that contains the type."""
        return self.type_ or self.datatype or self.either or self.format


class _Layer(msgspec.Struct):
    """A layer in the report of TensorRT's inspector at detailed verbosity; other fields are ignored."""

    name: str = msgspec.field(name="Name")
    kind: str = msgspec.field(name="LayerType", default="")
    metadata: str = msgspec.field(name="Metadata", default="")
    inputs: list[_Tensor] = msgspec.field(name="Inputs", default_factory=list)
    outputs: list[_Tensor] = msgspec.field(name="Outputs", default_factory=list)

    @property
    def types(self) -> set[str]:
        """Floating-point types of all inputs and outputs."""
        found = (_NAME.search(tensor.said) for tensor in (*self.inputs, *self.outputs))
        return {_NAMES[match[1]] for match in found if match}


class _Engine(msgspec.Struct):
    layers: list[_Layer] = msgspec.field(name="Layers")


@dataclass(frozen=True, kw_only=True)
class Precisions:
    """The precision of an engine's layers."""

    layers: dict[str, int]
    """Number of layers with float32 tensors, with float16 tensors only, and with neither."""
    float32: tuple[str, ...]
    """In a float16 graph, names of the layers with float32 tensors, which are all expected."""


def check_graph(path: Path, nodes: list[Node], precision: str) -> None:
    """Check that a float16 graph has its matrix products and convolutions in float16, as its engine will.

    :raises ExportError: some of these nodes are in float32
    """
    wrong = [node.name for node in nodes if node.operator in _PRODUCTS and "float" in node.data]
    if precision == "float16" and wrong:
        raise ExportError(
            f"{path}: expected convolutions and matrix products in float16, as the bundle says, found "
            f"{_some(wrong)} in float32; export the bundle again with --precision fp16"
        )


def check_precisions(plan: Path, inspected: str, nodes: list[Node], precision: str) -> Precisions:
    """Compare an engine's layers with the graph's types.

    In a float16 graph, three kinds of layers may be in float32: those from nodes that are float32 in the
    graph (casts at inputs and outputs, the sampler's arithmetic), sums of normalisations and softmax, and
    data movements.

    :param inspected: JSON of TensorRT's engine inspector
    :param nodes: nodes of the ONNX graph
    :param precision: the graph's precision in ``bundle.json``
    :raises ExportError: a layer computes in float32 without need, or no layer has the graph's precision
    """
    try:
        layers = msgspec.json.decode(inspected, type=_Engine).layers
    except msgspec.MsgspecError as error:
        raise ExportError(f"{plan}: expected the inspector's detailed list of layers: {error}") from error
    counts = Counter(_main_type(layer) for layer in layers)
    by_name = {node.name: node for node in nodes}
    touching = [layer for layer in layers if precision == "float16" and "float32" in layer.types]
    wrong = [layer.name for layer in touching if not _is_expected(layer, by_name)]
    if wrong:
        raise ExportError(
            f"{plan.name}: expected float16, as the graph says, found float32 in {len(wrong)} of "
            f"{len(layers)} layers: {_some(wrong)}; no engine was written. Build with another release of "
            "TensorRT or at another --optimization-level"
        )
    if not counts[precision]:
        raise ExportError(
            f"{plan.name}: expected layers that compute in {precision}, as the graph does, found none among "
            f"{len(layers)}; no engine was written. Use another release of TensorRT: this one may describe "
            "its layers in a way that this check does not know"
        )
    return Precisions(layers=dict(sorted(counts.items())), float32=tuple(layer.name for layer in touching))


def _main_type(layer: _Layer) -> str:
    for name in ("float32", "float16"):
        if name in layer.types:
            return name
    return "other"


def _is_expected(layer: _Layer, nodes: dict[str, Node]) -> bool:
    names = _SOURCE.findall(layer.metadata) or [name for name in nodes if name in layer.name]
    sources = [nodes[name] for name in names if name in nodes]
    has_reason = any("float" in node.data or node.operator in _SUMS for node in sources)
    if any(node.operator in _PRODUCTS for node in sources):
        return has_reason and "float16" in layer.types  # a product with a cast or a sum fused to it
    return has_reason or layer.kind in _MOVES or bool(not sources and _COMPILERS_MOVE.match(layer.name))


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
