"""One export: what it starts from, where it writes, and what has been measured so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from export.lineage.provenance import Ledger
from export.lineage.source import Subject
from export.parity.differences import Difference
from export.parity.limits import Limits, gate, relative
from export.parity.parity_report import GraphParity, rows
from export.precision_forms import Form
from realtime.bundle.spec import Evaluated
from train.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Export:
    """The inputs of an export, with the provenance and the parity figures that its steps add."""

    checkpoint: Checkpoint
    subject: Subject
    form: Form
    name: str
    """Of the bundle."""
    quality: str | None
    """How well the model decodes, in Markdown, for the model card."""
    evaluation: tuple[Evaluated, ...]
    """The same for the runtime; empty where it is not known."""
    limits: Limits
    folder: Path
    """Of the bundle while it is being written."""
    exact: Path
    """Folder of the fp32 graphs: ``folder`` itself where the bundle holds these."""
    is_large: bool
    """Whether the model is measured at fewer inputs, because one step of its UNet takes seconds on a CPU."""
    ledger: Ledger = field(default_factory=Ledger)
    parity: list[GraphParity] = field(default_factory=list)
    """Rows of the parity report, in the order in which they were measured."""

    def measure(
        self, step: str, against: str, found: dict[str, Difference], limit: float
    ) -> dict[str, float]:
        """Add the differences of a step to the parity report, and return the relative ones.

        :raises ExportError: when one of them exceeds the limit
        """
        figures = gate(step, relative(found), limit)
        self.parity.extend(rows(step, against, found, limit))
        return figures
