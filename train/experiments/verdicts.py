"""Verdicts on a statement: it appears in the synthetic data, it does not, or this cannot be said. Pure.

Both positive and negative verdicts need evidence. A difference appears when the 95 % interval of the paired
difference excludes 0; it does not appear when the interval shows the opposite, or equality within a margin.
Equality appears when the interval lies within the margin, and does not appear when it lies outside.
Everything else cannot be said. Two things can stand in the way, and a reason tells them apart: a model whose
loss on held-out presentations still fell when its training ended, of which nothing is said, because a longer
training could decide; and an interval that is too wide, which no longer training makes narrower. Where that
loss was not measured, nothing is said of longer trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from train.evaluation.results_table import Score
from train.experiments.entries import (
    Difference,
    Entry,
    chance_of,
    contrast,
    difference,
    difference_of_gains,
)

Verdict = Literal["appears", "does not appear", "cannot be said"]
MARGIN = 0.05
"""Smaller differences count as equal: 5 points of identification, 0.05 of a correlation."""
LOW_LEVEL, HIGH_LEVEL = "Pixels", "EffNet-Lite0"
BOTH = (LOW_LEVEL, HIGH_LEVEL)
_MARGIN = f"{100 * MARGIN:.0f} points"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict, its reason, and the differences that it is based on."""

    verdict: Verdict
    why: str
    differences: tuple[Difference, ...] = ()


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A statement, and the verdict of the synthetic data on it."""

    claim: str
    source: str = "The paper"
    """The source of the statement."""
    verdict: Verdict
    here: str
    """The result here, and the reason for the verdict."""
    differences: tuple[Difference, ...] = ()

    @classmethod
    def of(cls, claim: str, judgement: Judgement, here: str = "", source: str = "The paper") -> Finding:
        """A finding from a statement and its judgement."""
        return cls(
            claim=claim,
            source=source,
            verdict=judgement.verdict,
            here=f"{here} {judgement.why[:1].upper()}{judgement.why[1:]}.".strip(),
            differences=judgement.differences,
        )


def better(one: Entry, other: Entry, metrics: Sequence[str] = BOTH) -> Judgement:
    """Whether ``one`` is better in some metric and worse in none.

    If the linear reference is better but the model is not, the reason says so.

    :raises TrainError: the two entries have different trials
    """
    found = _better(one, other, metrics)
    references = one.reference, other.reference
    if found.verdict == "does not appear" and references[0] and references[1]:
        held = _better(references[0], references[1], metrics)
        if held.verdict == "appears":
            return Judgement(
                verdict=found.verdict,
                why=f"{found.why}; the recordings do hold a difference that a linear map finds: {held.why}",
                differences=found.differences + held.differences,
            )
    return found


def _better(one: Entry, other: Entry, metrics: Sequence[str]) -> Judgement:
    return _judged((one, other), _differences(one, other, metrics), _is_better)


def on_par(one: Entry, other: Entry, metrics: Sequence[str] = BOTH) -> Judgement:
    """Whether two entries differ by less than the margin in every metric.

    :raises TrainError: the two entries have different trials
    """
    return _judged((one, other), _differences(one, other, metrics), _is_equal)


def at_least_as_good(one: Entry, other: Entry, metrics: Sequence[str] = BOTH) -> Judgement:
    """Whether ``one`` is worse by more than the margin in no metric.

    :raises TrainError: the two entries have different trials
    """
    return _judged((one, other), _differences(one, other, metrics), _is_not_worse)


def gains_more(first: tuple[Entry, Entry], second: tuple[Entry, Entry], metric: str) -> Judgement:
    """Whether the first pair's difference is larger than the second's.

    :raises TrainError: the four entries have different trials
    """
    return _judged((*first, *second), (difference_of_gains(first, second, metric),), _is_better)


def decodes(entry: Entry, metric: str = LOW_LEVEL) -> Judgement:
    """Whether a model identifies better than chance; it does not when it is within the margin of chance."""
    if reason := _unfinished(entry):
        return _unsaid(reason)
    score, chance = entry.score(metric), chance_of(metric)
    if score.low > chance:
        verdict: Verdict = "appears"
        words = "above chance"
    elif score.high < chance + MARGIN:
        verdict, words = "does not appear", f"within {_MARGIN} of chance, or below"
    else:
        verdict, words = "cannot be said", "neither above chance nor shown to be at it. "
        words += _narrower(contrast_with_chance(entry, metric), [entry])
    if verdict != "appears" and entry.reference and entry.reference.score(metric).low > chance:
        words += f", where the linear reference reaches {percent(entry.reference.score(metric))}"
    return Judgement(verdict=verdict, why=f"{entry.label}: {metric} {percent(score)}, {words}")


def contrast_with_chance(entry: Entry, metric: str) -> Difference:
    """An entry's difference to chance."""
    chance = chance_of(metric)
    return contrast(entry.label, "chance", metric, entry.values[metric] - chance, entry)


def all_of(*parts: Judgement) -> Judgement:
    """The verdict on a conjunction: it appears when all parts do, and does not when one part does not."""
    if any(part.verdict == "does not appear" for part in parts):
        return _joined("does not appear", parts)
    shown = all(part.verdict == "appears" for part in parts)
    return _joined("appears" if shown else "cannot be said", parts)


def any_of(*parts: Judgement) -> Judgement:
    """The verdict on a disjunction: it appears when one part does, and does not when no part does."""
    if any(part.verdict == "appears" for part in parts):
        return _joined("appears", parts)
    refuted = all(part.verdict == "does not appear" for part in parts)
    return _joined("does not appear" if refuted else "cannot be said", parts)


def all_have_learned(entries: Iterable[Entry]) -> bool:
    """Whether each model is known to have learned what it can."""
    return all(entry.unfinished == "" for entry in entries)


def said(entry: Entry, metrics: Sequence[str] = BOTH) -> str:
    """An entry's headline scores as text."""
    return ", ".join(f"{metric} {percent(entry.score(metric))}" for metric in metrics)


def percent(score: Score) -> str:
    """A share with its 95 % interval."""
    return f"{100 * score.value:.1f} % [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _judged(
    entries: Sequence[Entry],
    differences: tuple[Difference, ...],
    rule: Callable[[Sequence[Difference]], tuple[Verdict, str]],
) -> Judgement:
    if reason := _unfinished(*entries):
        return _unsaid(reason, differences)
    verdict, words = rule(differences)
    if verdict == "cannot be said":
        words += f". {_narrower(max(differences, key=lambda each: each.high - each.low), entries)}"
    return Judgement(verdict=verdict, why=f"{_told(differences)}: {words}", differences=differences)


def _is_better(differences: Sequence[Difference]) -> tuple[Verdict, str]:
    wins = " and ".join(each.metric for each in differences if each.low > 0)
    losses = " and ".join(each.metric for each in differences if each.high < 0)
    if losses:
        return "does not appear", f"better in {wins} but worse in {losses}" if wins else f"worse in {losses}"
    if wins:
        return "appears", f"better in {wins}"
    if all(_is_within(each) for each in differences):
        return "does not appear", f"equal within {_MARGIN}"
    return "cannot be said", "neither a difference nor equality is shown"


def _is_equal(differences: Sequence[Difference]) -> tuple[Verdict, str]:
    apart = " and ".join(each.metric for each in differences if each.low > MARGIN or each.high < -MARGIN)
    if apart:
        return "does not appear", f"more than {_MARGIN} apart in {apart}"
    if all(_is_within(each) for each in differences):
        return "appears", f"equal within {_MARGIN}"
    return "cannot be said", f"equality within {_MARGIN} is neither shown nor excluded"


def _is_not_worse(differences: Sequence[Difference]) -> tuple[Verdict, str]:
    worse = " and ".join(each.metric for each in differences if each.high < -MARGIN)
    if worse:
        return "does not appear", f"worse by more than {_MARGIN} in {worse}"
    if all(each.low > -MARGIN for each in differences):
        return "appears", f"not worse by {_MARGIN}"
    return "cannot be said", f"being worse by {_MARGIN} is neither shown nor excluded"


def _differences(one: Entry, other: Entry, metrics: Sequence[str]) -> tuple[Difference, ...]:
    return tuple(difference(one, other, metric) for metric in metrics)


def _joined(verdict: Verdict, parts: Sequence[Judgement]) -> Judgement:
    """A judgement with the reasons of the parts that decide it, and the differences of all parts."""
    return Judgement(
        verdict=verdict,
        why="; ".join(dict.fromkeys(part.why for part in parts if part.verdict == verdict)),
        differences=tuple(dict.fromkeys(each for part in parts for each in part.differences)),
    )


def _unsaid(why: str, differences: tuple[Difference, ...] = ()) -> Judgement:
    return Judgement(verdict="cannot be said", why=why, differences=differences)


def _unfinished(*entries: Entry) -> str:
    """A sentence about models of which a longer training may make others; empty if there are none."""
    return "; ".join(
        f"{entry.label}: {entry.unfinished}" for entry in dict.fromkeys(entries) if entry.unfinished
    )


def _narrower(each: Difference, entries: Sequence[Entry]) -> str:
    """What would make the interval of a difference between entries narrower."""
    seeds = f"{each.n_seeds} seed{'s' * (each.n_seeds > 1)}"
    more = "seeds" if each.share_of_seeds > 0.5 else "held-out pictures"
    no_longer = "No longer training decides it, but more" if all_have_learned(entries) else "More"
    return (
        f"{no_longer} {more} could decide it: with {each.n_trials} trials of {each.n_pictures} pictures and "
        f"{seeds} the interval of {each.metric} is "
        f"{100 * (each.high - each.low):.1f} points wide, {100 * each.share_of_seeds:.0f} % of its variance "
        "from the seeds"
    )


def _told(differences: Sequence[Difference]) -> str:
    numbers = ", ".join(
        f"{each.metric} {100 * each.value:+.1f} [{100 * each.low:+.1f}, {100 * each.high:+.1f}]"
        for each in differences
    )
    return f"{differences[0].one} against {differences[0].other}: {numbers} points"


def _is_within(each: Difference) -> bool:
    return -MARGIN < each.low and each.high < MARGIN
