"""Gives a graph's nodes readable names: the paths of the modules that they come from.

torch names nodes ``node_conv2d_17`` and constants ``val_705``. The metadata of each node has its modules, and
the lines of source with the folders of the machine. The modules become the names, as for weights
(``unet.down_blocks.0.resnets.0.conv1.weight``); the metadata is removed.
"""

from __future__ import annotations

import ast
from collections.abc import Container, Mapping

from onnxscript import ir
from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

FLOAT32_NODES = "float32_nodes"
"""Metadata key of an fp16 graph: names of the nodes that an engine is expected to compute in fp32."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_NO_SCOPE = "_empty_nn_module_stack_from_metadata_hook"

_MEANINGS = {
    "window": "z-scores of the region's voxels, [1, voxels, volumes]",
    "condition": "tokens that condition the diffusion, [1, tokens, width]",
    "start": "latents that the brain module predicts, [1, channels, height, width]",
    "latents": "latents so far, [1, channels, height, width]",
    "previous": "prediction of the step before; zeros in the first, [1, channels, height, width]",
    "timestep": "of the noise schedule, [1]",
    "conditions": "null condition and condition, or the condition alone, [n, tokens, width]",
    "weights": "of the noises predicted under each condition; they sum to 1, [n]",
    "coefficients": "next = c0 * latents + c1 * prediction + c2 * previous, [3]",
    "next": "latents after this step, [1, channels, height, width]",
    "prediction": "of the clean latents, guided, [1, channels, height, width]",
    "image": "picture, RGB, [height, width, 3]",
}


def name_by_module(model: ir.Model, name: str, weights: Container[str]) -> None:
    """Name the graph; name nodes, their outputs and constants after the modules that they come from.

    :param weights: names of the modules' own tensors, which do not change
    """
    graph = model.graph
    graph.name = name
    taken: set[str] = {str(value.name) for value in (*graph.inputs, *graph.outputs)} | set(graph.initializers)
    kept = {id(value) for value in graph.outputs}
    for node in graph:
        node.name = _free(f"{_module_of(node) or name}.{node.op_type}", taken)
        for place, value in enumerate(node.outputs):
            if id(value) not in kept:
                value.name = f"{node.name}:{place}" if place else node.name
    for value in [value for key, value in graph.initializers.items() if key not in weights]:
        user = next(iter(value.uses()), None)
        value.name = _free(f"{user.node.name if user else name}.constant", taken)


def replace_notes(model: ir.Model, doc: str, facts: Mapping[str, str]) -> None:
    """Replace torch's metadata by a description of the graph and by ``facts`` on its origin."""
    ClearMetadataAndDocStringPass()(model)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.doc_string = _MEANINGS.get(str(value.name))
    model.doc_string = model.graph.doc_string = doc
    model.metadata_props.update(facts)


def float32_nodes(model: ir.Model) -> list[str]:
    """Names of nodes with fp32 outputs; in an fp16 graph, casts and the arithmetic outside the network."""
    return [
        str(node.name)
        for node in model.graph
        if any(value.dtype == ir.DataType.FLOAT for value in node.outputs)
    ]


def _module_of(node: ir.Node) -> str:
    """Path of the module that a node comes from; empty if there is none."""
    noted = node.metadata_props.get(_SCOPES)
    scopes: list[str] = ast.literal_eval(noted) if noted else []
    modules = [scope for scope in scopes[:-1] if scope and scope != _NO_SCOPE]
    return modules[-1] if modules else ""


def _free(wanted: str, taken: set[str]) -> str:
    """``wanted``, or ``wanted`` with the first unused number; the name is added to ``taken``."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}.{number}"
    taken.add(name)
    return name
