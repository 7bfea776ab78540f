"""What a built engine computes in, layer by layer, against the types of the ONNX graph it was built from.

TensorRT's networks are strongly typed: a layer computes in the types that the graph gives it. A float16 graph
that became a float32 engine runs, correctly and several times too slow, and nothing else tells.
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
"""TensorRT keeps their sums in float32, and may do so in layers of their own."""
_MOVES = {"Constant", "NoOp", "Reformat"}
_COMPILERS_MOVE = re.compile(r"__myl_(?:Cast|Conc|Copy|Move|Repl|Resh|Slic|Tran)+_")
"""Names of moves that TensorRT's compiler adds of its own and that name no layer of the graph."""
_MOST_NAMED = 20
_SOURCE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_NAMES = {"Float": "float32", "FP32": "float32", "Half": "float16", "FP16": "float16"}
_NAME = re.compile(r"\b(Float|FP32|Half|FP16)\b")


class _Tensor(msgspec.Struct):
    """A tensor between layers; its type stands alone (``Half``) or in a phrase (``... FP16 format``).

    Releases before 11 have both in one field, later ones in two.
    """

    either: str = msgspec.field(name="Format/Datatype", default="")
    type_: str = msgspec.field(name="DataType", default="")
    datatype: str = msgspec.field(name="Datatype", default="")
    format: str = msgspec.field(name="Format", default="")

    @property
    def said(self) -> str:
        """What tells the type."""
        return self.type_ or self.datatype or self.either or self.format


class _Layer(msgspec.Struct):
    """A layer as TensorRT's inspector describes it, at detailed verbosity; the rest is passed over."""

    name: str = msgspec.field(name="Name")
    kind: str = msgspec.field(name="LayerType", default="")
    metadata: str = msgspec.field(name="Metadata", default="")
    inputs: list[_Tensor] = msgspec.field(name="Inputs", default_factory=list)
    outputs: list[_Tensor] = msgspec.field(name="Outputs", default_factory=list)

    @property
    def types(self) -> set[str]:
        """Floating-point types of all that it reads and writes."""
        found = (_NAME.search(tensor.said) for tensor in (*self.inputs, *self.outputs))
        return {_NAMES[match[1]] for match in found if match}


class _Engine(msgspec.Struct):
    layers: list[_Layer] = msgspec.field(name="Layers")


@dataclass(frozen=True, kw_only=True)
class Precisions:
    """What was found in an engine."""

    layers: dict[str, int]
    """How many layers touch float32, how many float16 alone, how many neither."""
    float32: tuple[str, ...]
    """Names of those of a float16 graph that touch float32, as expected."""


def check_graph(path: Path, nodes: list[Node], precision: str) -> None:
    """See that a graph that is said to compute in float16 has its products so: its engine will have no other.

    :raises ExportError: naming the nodes in float32
    """
    wrong = [node.name for node in nodes if node.operator in _PRODUCTS and "float" in node.data]
    if precision == "float16" and wrong:
        raise ExportError(
            f"{path}: expected convolutions and matrix products in float16, as the bundle says, found "
            f"{_some(wrong)} in float32; export the bundle again with --precision fp16"
        )


def check_precisions(plan: Path, inspected: str, nodes: list[Node], precision: str) -> Precisions:
    """Compare an engine's layers with the graph's types.

    Expected in float32 are, of a float16 graph, layers made from nodes that the graph itself has in float32
    (casts at its edges, the sampler's arithmetic), sums of normalisations and softmax, and mere moves.

    :param inspected: JSON of TensorRT's engine inspector
    :param nodes: of the ONNX graph
    :param precision: what the bundle says the graph computes in
    :raises ExportError: naming the layers that compute in float32 for no reason, or when no layer is said to
        compute in what the graph does
    """
    try:
        layers = msgspec.json.decode(inspected, type=_Engine).layers
    except msgspec.MsgspecError as error:
        raise ExportError(f"{plan}: expected the inspector's list of layers in detail: {error}") from error
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
            f"{len(layers)}; no engine was written. If this release of TensorRT describes its layers in "
            "another way than those before, this check has to learn it first"
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
