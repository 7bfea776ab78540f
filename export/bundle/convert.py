"""One graph on its way into the bundle: traced, written in its form, measured against the step before.

torch ─► <graph>.onnx in fp32 ─► the same with big weights stored as fp16, or traced anew in fp16

Weights are held once: files are written from torch's own memory, which is given back before ONNX Runtime
loads them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from export.bundle.spec import facts
from export.graphs import onnx_model
from export.graphs.graphs import Graph
from export.graphs.node_names import FLOAT32_NODES
from export.graphs.onnx_model import Arrays, onnx_runner, outputs_of, torch_runner
from export.lineage.provenance import Ledger, model_stage
from export.parity.limits import Difference, Limits, compare, gate, relative
from export.parity.parity_report import GraphParity, rows
from export.precision_forms import FINAL_STEPS, PRECISIONS, Form
from export.resources import give_back_memory
from realtime.bundle import spec as bundle_spec
from train.checkpoints.checkpoint import Checkpoint

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Converter:
    """Brings graphs into a bundle's folder and notes how close each step stayed.

    ``exact`` is the folder of the fp32 graphs: the bundle's own where they are what it holds.
    """

    form: Form
    folder: Path
    exact: Path
    limits: Limits
    ledger: Ledger
    checkpoint: Checkpoint
    is_large: bool
    """Too large for fp16 in torch on a CPU, whose convolutions have no kernel for it there: a step of the
    paper's UNet takes more than ten minutes."""
    parity: list[GraphParity] = field(default_factory=list)

    def convert(self, graph: Graph, expected: list[Arrays]) -> bundle_spec.Graph:
        """Write a graph and measure it; its module cannot run afterwards.

        :param expected: what torch gives for the graph's cases, in fp32
        :raises ExportError: when a step is too far from the one before
        """
        _log.info("%-15s tracing …", graph.name)
        entry, notes, in_half = self._write(graph)
        step = f"{graph.name} onnx"
        exact = _run(graph, self._exact_path(graph))
        self._note(
            step,
            self._exact_path(graph),
            model_stage(self.checkpoint),
            compare(graph, exact, expected),
            self.limits.onnx,
            {"against": "torch", "opset": str(onnx_model.OPSETS["float32"])},
        )
        if self.form == "fp32":
            return entry
        path = self.folder / entry.file
        found = compare(graph, _run(graph, path), exact)
        final = f"{graph.name} {FINAL_STEPS[self.form]}"
        self._note(final, path, step, found, self.limits.stored, {"against": "ONNX in fp32"} | notes)
        if in_half is not None:
            self._gate(f"{final}, torch", "torch in fp32", compare(graph, in_half, expected))
        return entry

    def _write(self, graph: Graph) -> tuple[bundle_spec.Graph, dict[str, str], list[Arrays] | None]:
        """The files; returns the bundle's entry, notes for its provenance, and what torch gives in fp16."""
        path, in_half = self.folder / f"{graph.name}.onnx", None
        noted = facts(self.checkpoint, self.ledger)
        model = onnx_model.trace(graph, noted)
        inputs, outputs = onnx_model.signature_of(model)
        onnx_model.save(model, self._exact_path(graph))
        notes: dict[str, str] = {}
        if self.form == "compact":
            notes["fp16_weights"] = str(onnx_model.store_compactly(model))
            onnx_model.save(model, path)
        elif self.form == "fp16":
            onnx_model.drop_weights(model)
            graph.module.to_half()
            in_half = None if self.is_large else outputs_of(graph, torch_runner(graph))
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
            file=path.name, precision=PRECISIONS[self.form], inputs=inputs, outputs=outputs
        )
        return entry, notes, in_half

    def _exact_path(self, graph: Graph) -> Path:
        return self.exact / f"{graph.name}.onnx"

    def _note(
        self,
        step: str,
        path: Path,
        made_from: str,
        found: dict[str, Difference],
        limit: float,
        notes: dict[str, str],
    ) -> None:
        self.ledger.note(
            step,
            onnx_model.files_sha256(path),
            [made_from],
            parity=gate(step, relative(found), limit),
            notes=notes | {"limit": f"{limit:g}"},
        )
        self.parity += rows(step, notes["against"], found, limit)

    def _gate(self, step: str, against: str, found: dict[str, Difference]) -> None:
        """A measure without a file of its own: the arithmetic in fp16 as torch does it, op by op.

        ONNX Runtime's CPU keeps fp32 between two nodes for which it has no kernel in fp16.
        """
        limit = self.limits.stored
        gate(step, relative(found), limit)
        self.parity += rows(step, against, found, limit)


def _run(graph: Graph, path: Path) -> list[Arrays]:
    """What a file gives for the graph's cases."""
    outputs = outputs_of(graph, onnx_runner(path))
    give_back_memory()
    return outputs
