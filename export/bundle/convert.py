"""Converts one graph: traces it, writes it in the bundle's form, and measures it against the step before.

torch ─► <graph>.onnx in fp32 ─► the same with big weights stored as fp16, or traced again in fp16

Weights are in memory once: files are written from torch's own memory, which is freed before ONNX Runtime
loads them.
"""

from __future__ import annotations

import logging
from pathlib import Path

from export.bundle.export import Export
from export.bundle.spec import facts
from export.graphs import onnx_model
from export.graphs.graphs import Graph
from export.graphs.node_names import FLOAT32_NODES
from export.graphs.onnx_model import Arrays, onnx_runner, outputs_of, torch_runner
from export.lineage.provenance import model_stage
from export.parity.differences import Difference
from export.parity.limits import compare
from export.precision_forms import FINAL_STEPS, PRECISIONS
from export.resources import give_back_memory
from realtime.bundle import spec as bundle_spec

_log = logging.getLogger(__name__)


def convert(export: Export, graph: Graph, expected: list[Arrays]) -> bundle_spec.Graph:
    """Write a graph into the bundle and measure it; its module cannot run afterwards.

    :param expected: torch's outputs for the graph's cases, in fp32
    :returns: the graph's entry in ``bundle.json``
    :raises ExportError: when a step is too far from the one before
    """
    _log.info("%-15s tracing …", graph.name)
    entry, notes, in_half = _write(export, graph)
    step, exact_path = f"{graph.name} onnx", _exact_path(export, graph)
    exact = _run(graph, exact_path)
    _note(
        export,
        step,
        exact_path,
        model_stage(export.checkpoint),
        compare(graph, exact, expected),
        export.limits.onnx,
        {"against": "torch", "opset": str(onnx_model.OPSETS["float32"])},
    )
    if export.form == "fp32":
        return entry
    path, limit = export.folder / entry.file, export.limits.stored
    found = compare(graph, _run(graph, path), exact)
    final = f"{graph.name} {FINAL_STEPS[export.form]}"
    _note(export, final, path, step, found, limit, {"against": "ONNX in fp32"} | notes)
    if in_half is not None:
        # The arithmetic in fp16 as torch does it, operator by operator: ONNX Runtime's CPU keeps fp32 between
        # two nodes for which it has no kernel in fp16.
        export.measure(f"{final}, torch", "torch in fp32", compare(graph, in_half, expected), limit)
    return entry


def _write(export: Export, graph: Graph) -> tuple[bundle_spec.Graph, dict[str, str], list[Arrays] | None]:
    """Write the files.

    :returns: the graph's entry in ``bundle.json``, notes for its provenance, and torch's outputs in fp16,
        or None where these are not measured
    """
    path, in_half = export.folder / f"{graph.name}.onnx", None
    noted = facts(export)
    model = onnx_model.trace(graph, noted)
    inputs, outputs = onnx_model.signature_of(model)
    onnx_model.save(model, _exact_path(export, graph))
    notes: dict[str, str] = {}
    if export.form == "compact":
        notes["fp16_weights"] = str(onnx_model.store_compactly(model))
        onnx_model.save(model, path)
    elif export.form == "fp16":
        onnx_model.drop_weights(model)
        graph.module.to_half()
        if not export.is_large:
            # torch's CPU convolutions have no fp16 kernel: a step of the paper's UNet takes over ten minutes.
            in_half = outputs_of(graph, torch_runner(graph))
        model = onnx_model.trace(graph, noted)
        onnx_model.save(model, path)
        notes = {
            "opset": str(onnx_model.OPSETS["float16"]),
            FLOAT32_NODES: model.metadata_props[FLOAT32_NODES],
        }
    onnx_model.drop_weights(model)
    graph.module.release()
    give_back_memory()
    entry = bundle_spec.Graph(
        file=path.name, precision=PRECISIONS[export.form], inputs=inputs, outputs=outputs
    )
    return entry, notes, in_half


def _exact_path(export: Export, graph: Graph) -> Path:
    return export.exact / f"{graph.name}.onnx"


def _note(
    export: Export,
    step: str,
    path: Path,
    made_from: str,
    found: dict[str, Difference],
    limit: float,
    notes: dict[str, str],
) -> None:
    """Note a file as a stage of the provenance, once it is within its limit."""
    export.ledger.note(
        step,
        onnx_model.files_sha256(path),
        [made_from],
        parity=export.measure(step, notes["against"], found, limit),
        notes=notes | {"limit": f"{limit:g}"},
    )


def _run(graph: Graph, path: Path) -> list[Arrays]:
    """The outputs of a graph's file for the graph's cases."""
    outputs = outputs_of(graph, onnx_runner(path))
    give_back_memory()
    return outputs
