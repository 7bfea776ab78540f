"""The results of an experiment: rows of scores, and verdicts on the paper's findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from train.evaluation.bootstrap import PerTrial
from train.evaluation.results_table import NotComputed, Seen, per_trial, see
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
        """Decode a test with a model of every seed, and score the decodes."""
        values = self.values(self.shown, self.bench.decodes(variant, test))
        return entry_of(series, values, self.images, x, reference, self.bench.unfinished(variant))

    def reference(self, series: str, variant: Variant, test: Probe, x: float | None = None) -> Entry:
        """The same test with the linear reference, fitted to the windows that ``variant`` was trained on."""
        return self.entry(series, linear(self.bench, variant, self.subject), test, x)

    @classmethod
    def values(cls, shown: Seen, decodes: Sequence[Pictures]) -> dict[str, PerTrial | NotComputed]:
        """Every metric's value ``[s, n]`` for the decodes of each seed, ``[n, H, W, 3]``."""
        of_seeds = [per_trial(shown, cls._see(pictures)) for pictures in decodes]
        return {name: _stacked([each[name] for each in of_seeds]) for name in of_seeds[0]}

    @staticmethod
    def _see(pictures: Pictures) -> Seen:
        return see({"pictures": pictures}, None)["pictures"]


def _stacked(of_seeds: Sequence[PerTrial | NotComputed]) -> PerTrial | NotComputed:
    missing = [each for each in of_seeds if isinstance(each, NotComputed)]
    computed = [each for each in of_seeds if not isinstance(each, NotComputed)]
    return missing[0] if missing else np.stack(computed)
