"""What an experiment found: rows of scores, and in words whether the paper's finding appears."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from train.experiments.workbench import Probe, Variant, Workbench
from train.sample import Pictures
from train.table import METRICS, Row, Score, Seen, compare, see

HEADLINES = ("Pixels", "EffNet-Lite0", "PixCorr", "SSIM")
"""Metrics that are drawn: two of low level, two of what is to be seen; all are in the table."""


Strip = tuple[str, Pictures]
"""A row of pictures to look at, uint8 ``[n, H, W, 3]``, and its name."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a test."""

    series: str
    """What is drawn as one line, or named as one row."""
    x: float | None = None
    scores: Row

    def score(self, metric: str) -> Score:
        """A metric that was computed."""
        score = self.scores[metric]
        assert isinstance(score, Score), score
        return score


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A statement, and what the synthetic data say to it."""

    claim: str
    source: str = "The paper"
    """Whose statement it is."""
    appears: bool
    here: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """A page of results."""

    name: str
    title: str
    question: str
    entries: list[Entry]
    findings: list[Finding]
    axis: str | None = None
    """What ``x`` of the entries is; without, entries are rows of a table."""
    chance_at: str = ""
    strips: list[Strip] = field(default_factory=list)
    notes: Sequence[str] = ()


class Judge:
    """Scores pictures against what was shown to one subject."""

    def __init__(self, bench: Workbench, subject: int = 1) -> None:
        self.bench = bench
        self.pictures = bench.shown(subject)
        self.shown = self._see(self.pictures)

    def entry(self, series: str, variant: Variant, test: Probe, x: float | None = None) -> Entry:
        """Decode a test with a model, and score it."""
        return self.of_pictures(series, self.bench.decodes(variant, test), x)

    def of_pictures(self, series: str, decoded: Pictures, x: float | None = None) -> Entry:
        """Score pictures."""
        return Entry(series=series, x=x, scores=compare(self.shown, self._see(decoded)))

    @staticmethod
    def _see(pictures: Pictures) -> Seen:
        return see({"pictures": pictures}, None)["pictures"]


def is_better(one: Entry, other: Entry, metric: str) -> bool:
    """Whether ``one`` is better than ``other`` beyond doubt: their 95 % intervals do not meet."""
    first, second = one.score(metric), other.score(metric)
    if _lower_is_better(metric):
        return first.high < second.low
    return first.low > second.high


def is_clearly_better(one: Entry, other: Entry) -> bool:
    """Whether ``one`` is better in low or in high level, and worse in neither."""
    metrics = ("Pixels", "EffNet-Lite0")
    wins = any(is_better(one, other, metric) for metric in metrics)
    return wins and not any(is_better(other, one, metric) for metric in metrics)


def above_chance(entry: Entry, metric: str = "Pixels") -> bool:
    """Whether the 95 % interval lies above chance."""
    chance = next(each.chance for each in METRICS if each.name == metric)
    return chance is not None and entry.score(metric).low > chance


def said(entry: Entry, metrics: Iterable[str] = ("Pixels", "EffNet-Lite0")) -> str:
    """An entry's headline scores in words."""
    return ", ".join(f"{metric} {_percent(entry.score(metric))}" for metric in metrics)


def _percent(score: Score) -> str:
    return f"{100 * score.value:.1f} % [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _lower_is_better(metric: str) -> bool:
    return next(each.better for each in METRICS if each.name == metric) == "lower"
