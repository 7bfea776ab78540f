"""The results of an experiment: rows of scores, and verdicts on the paper's findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from train.evaluation.results_table import Seen, per_trial, see
from train.experiments.catalogue import linear
from train.experiments.entries import Entry, entry_of
from train.experiments.verdicts import Finding
from train.experiments.workbench import Probe, Variant, Workbench
from train.model.sample import Pictures

LINEAR = "linear reference"
"""Name of Brain-Diffuser's ridge regressions in entries."""
Strip = tuple[str, Pictures]
"""Name of a row of pictures, and the pictures, uint8 ``[n, H, W, 3]``."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of a page of results."""

    name: str
    title: str
    question: str
    entries: list[Entry]
    findings: list[Finding]
    axis: str | None = None
    """Label of the entries' ``x``; None when entries are rows of a table."""
    chance_at: str = ""
    strips: list[Strip] = field(default_factory=list)
    notes: Sequence[str] = ()


class Judge:
    """Scores decodes against the pictures that were shown to one subject."""

    def __init__(self, bench: Workbench, subject: int = 1) -> None:
        self.bench, self.subject = bench, subject
        self.images, self.pictures = bench.shown(subject)
        self.shown = self._see(self.pictures)

    def entry(
        self,
        series: str,
        variant: Variant,
        test: Probe,
        x: float | None = None,
        reference: Entry | None = None,
    ) -> Entry:
        """Decode a test with a model, and score the decodes."""
        decoded = self._see(self.bench.decodes(variant, test))
        return entry_of(series, per_trial(self.shown, decoded), self.images, x, reference)

    def reference(self, series: str, variant: Variant, test: Probe, x: float | None = None) -> Entry:
        """The same test with the linear reference, fitted to the windows that ``variant`` was trained on."""
        return self.entry(series, linear(self.bench, variant, self.subject), test, x)

    @staticmethod
    def _see(pictures: Pictures) -> Seen:
        return see({"pictures": pictures}, None)["pictures"]
