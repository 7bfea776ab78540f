"""What is said of two models: paired, in three values, and never beyond the evidence."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from train.errors import TrainError
from train.evaluation.results_table import METRICS, NotComputed
from train.experiments.entries import HEADLINES, N_DRAWS, Entry, difference, entry_of
from train.experiments.over_time import begins, lasts, shows_neighbours
from train.experiments.verdicts import (
    Finding,
    Judgement,
    Verdict,
    all_have_learned,
    all_of,
    any_of,
    at_least_as_good,
    better,
    decodes,
    gains_more,
    on_par,
    said,
)

Array = NDArray[Any]
YES, NO, UNSAID = "appears", "does not appear", "cannot be said"
N = 100
UP_AND_DOWN = np.tile([1.0, -1.0], N // 2)
"""Times a spread of 0.1, the mean's 95 % interval is 2 points wide to either side."""


def entry(
    pixels: float,
    lite0: float | None = None,
    *,
    spread: float = 0.0,
    pictures: Array | None = None,
    reference: Entry | None = None,
    x: float | None = None,
    series: str = "model",
    unfinished: str | None = "",
) -> Entry:
    means = {name: pixels if lite0 is None or name != "EffNet-Lite0" else lite0 for name in HEADLINES}
    values: dict[str, Array | NotComputed] = {
        name: mean + spread * UP_AND_DOWN for name, mean in means.items()
    }
    others: dict[str, Array | NotComputed] = {
        metric.name: NotComputed(needs="a network") for metric in METRICS
    }
    shown = np.arange(N) if pictures is None else pictures
    return entry_of(series, others | values, shown, x, reference, unfinished)


def of_values(values: Array, pictures: Array) -> Entry:
    return entry_of("model", dict.fromkeys((m.name for m in METRICS), values), pictures)


TRIALS = st.integers(2, 25).flatmap(
    lambda n: st.tuples(
        *(arrays.arrays(np.float64, n, elements=st.floats(0, 1, width=32)) for _ in range(2)),
        arrays.arrays(np.int64, n, elements=st.integers(0, 10)).filter(lambda p: len(set(p.tolist())) > 1),
    )
)


@settings(deadline=None, max_examples=50)
@given(trials=TRIALS, seed=st.integers(0, 9))
def test_a_difference_is_that_of_the_same_trials(trials: tuple[Array, Array, Array], seed: int) -> None:
    ours, theirs, pictures = trials
    one, other = of_values(ours, pictures), of_values(theirs, pictures)
    found, turned = difference(one, other, "Pixels", seed), difference(other, one, "Pixels", seed)
    assert found.value == pytest.approx(ours.mean() - theirs.mean(), abs=1e-9)
    assert (found.value, found.low, found.high) == pytest.approx(
        (-turned.value, -turned.high, -turned.low), abs=1e-12
    )
    shown = np.unique(pictures)
    rng, means = np.random.default_rng(seed), []
    for draw in rng.integers(len(shown), size=(N_DRAWS, len(shown))):
        trials_drawn = np.concatenate([np.flatnonzero(pictures == shown[place]) for place in draw])
        means.append(ours[trials_drawn].mean() - theirs[trials_drawn].mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-9)
    assert (found.n_trials, found.n_pictures) == (len(ours), len(shown))
    same = difference(one, one, "Pixels", seed)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_pairing_sees_what_two_intervals_hide() -> None:
    hard = np.random.default_rng(0).uniform(0, 0.9, N)
    one, other = of_values(hard + 0.03, np.arange(N)), of_values(hard, np.arange(N))
    assert one.score("Pixels").low < other.score("Pixels").high, "their own intervals meet"
    assert better(one, other).verdict == YES
    assert better(other, one).verdict == NO


@pytest.mark.parametrize(
    ("gain", "lite0_gain", "spread", "is_better", "is_on_par", "is_as_good"),
    [
        (0.10, 0.10, 0.1, YES, NO, YES),
        (0.03, 0.00, 0.05, YES, YES, YES),  # small but sure
        (0.00, 0.00, 0.1, NO, YES, YES),
        (0.00, 0.00, 0.4, UNSAID, UNSAID, UNSAID),
        (0.04, 0.04, 0.4, UNSAID, UNSAID, YES),
        (-0.03, 0.00, 0.05, NO, YES, YES),
        (-0.05, 0.00, 0.1, NO, UNSAID, UNSAID),
        (-0.10, 0.00, 0.1, NO, NO, NO),
        (0.10, -0.10, 0.1, NO, NO, NO),  # the one does not make up for the other
        (0.10, 0.00, 0.1, YES, NO, YES),
    ],
)
def test_a_verdict_needs_evidence_either_way(
    gain: float, lite0_gain: float, spread: float, is_better: str, is_on_par: str, is_as_good: str
) -> None:
    one, other = entry(0.7 + gain, 0.7 + lite0_gain, spread=spread), entry(0.7)
    assert better(one, other).verdict == is_better
    assert on_par(one, other).verdict == is_on_par
    assert at_least_as_good(one, other).verdict == is_as_good
    assert on_par(other, one).verdict == is_on_par, "whichever comes first"


def test_a_reason_holds_the_numbers() -> None:
    one, other = entry(0.8, spread=0.1, series="a"), entry(0.7, series="b", x=4 / 3)
    judged = better(one, other, ("Pixels",))
    (found,) = judged.differences
    assert judged.why == (
        f"a against b at 1.33: Pixels +10.0 [{100 * found.low:+.1f}, {100 * found.high:+.1f}] points: "
        "better in Pixels"
    )
    assert 0.07 < found.low < 0.09 < 0.11 < found.high < 0.13
    assert said(other) == "Pixels 70.0 % [70.0, 70.0], EffNet-Lite0 70.0 % [70.0, 70.0]"
    finding = Finding.of("a is better", judged, "Here is why.")
    assert finding.here == f"Here is why. A{judged.why[1:]}."
    assert msgspec.to_builtins(finding)["differences"][0]["low"] == found.low


def test_entries_of_other_trials_are_not_compared() -> None:
    other = entry(0.7, pictures=np.arange(N)[::-1], series="turned")
    for compare in (better, on_par, at_least_as_good):
        with pytest.raises(TrainError, match="expected 'model' and 'turned' on the same trials"):
            compare(entry(0.7), other)


@pytest.mark.parametrize(
    ("value", "spread", "verdict"),
    [(0.53, 0.1, YES), (0.50, 0.1, NO), (0.50, 0.4, UNSAID), (0.52, 0.2, UNSAID), (0.30, 0.4, NO)],
)
def test_decoding_is_above_chance_and_not_decoding_near_it(value: float, spread: float, verdict: str) -> None:
    assert decodes(entry(value, spread=spread)).verdict == verdict


def test_of_a_model_that_still_learned_nothing_is_said() -> None:
    good, still = entry(0.9), entry(0.8, series="still", unfinished="the loss still fell")
    for judged in (
        decodes(still),
        better(good, still),
        better(still, good),
        on_par(good, still),
        at_least_as_good(still, good),
        gains_more((good, still), (good, good), "Pixels"),
    ):
        assert judged.verdict == UNSAID
        assert judged.why == "still: the loss still fell"


def test_a_model_at_its_plateau_is_judged_beside_its_reference() -> None:
    clear, vague = entry(0.9, spread=0.1), entry(0.5, spread=0.1)
    lagging, hopeless = (entry(0.5, spread=0.1, reference=each) for each in (clear, vague))
    assert decodes(lagging).verdict == decodes(hopeless).verdict == NO
    assert "where the linear reference reaches 90.0 %" in decodes(lagging).why
    assert "linear reference" not in decodes(hopeless).why
    many, few = entry(0.95), entry(0.8)
    missed = better(entry(0.9, reference=many), entry(0.9, reference=few))
    assert missed.verdict == NO
    assert "a difference that a linear map finds" in missed.why
    assert len(missed.differences) == 4, "the models', and the reference's"
    assert len(better(entry(0.9, reference=few), entry(0.9, reference=many)).differences) == 2
    assert better(entry(0.95, reference=few), entry(0.9, reference=many)).verdict == YES


def of_seeds(*shifts: float, spread: float = 0.1) -> Entry:
    """A model of several seeds, whose means differ by shifts."""
    values = np.array(shifts)[:, None] + 0.7 + spread * UP_AND_DOWN
    return of_values(values, np.arange(N))


def test_what_cannot_be_said_tells_what_would_decide() -> None:
    wide = better(entry(0.7, spread=0.4), entry(0.7))
    assert wide.verdict == UNSAID
    assert (
        "No longer training decides it, but more held-out pictures could decide it: with 100 trials of 100"
        in wide.why
    )
    torn = better(of_seeds(-0.1, 0.0, 0.1), of_seeds(0.0, 0.0, 0.0, spread=0))
    assert torn.verdict == UNSAID
    assert "more seeds could" in torn.why
    assert "3 seeds" in torn.why


def test_of_longer_trainings_nothing_is_said_where_the_loss_was_not_measured() -> None:
    unmeasured, wide = entry(0.7, unfinished=None), entry(0.7, spread=0.4)
    for judged in (
        better(wide, unmeasured),
        on_par(unmeasured, wide),
        at_least_as_good(entry(0.7, spread=0.4, unfinished=None), entry(0.7)),
        gains_more((wide, unmeasured), (wide, wide), "Pixels"),
        decodes(entry(0.5, spread=0.4, unfinished=None)),
    ):
        assert judged.verdict == UNSAID
        assert "longer training" not in judged.why
        assert ". More held-out pictures could decide it: with 100 trials of 100 pictures" in judged.why
    assert better(entry(0.9), unmeasured).verdict == YES, "the difference is there"
    assert all_have_learned([entry(0.7)])
    assert not all_have_learned([entry(0.7), unmeasured])
    assert not all_have_learned([entry(0.7), entry(0.7, unfinished="the loss still fell")])


def test_differences_pair_seeds() -> None:
    moved = (-0.1, 0.0, 0.1)
    one, other = of_seeds(*(0.06 + shift for shift in moved)), of_seeds(*moved)
    assert better(one, other).verdict == YES, "each seed gains as much"
    assert better(one, of_seeds(*moved[::-1])).verdict == UNSAID
    (found,) = better(one, of_values(other.values["Pixels"][1], np.arange(N)), ("Pixels",)).differences
    assert found.n_seeds == 3
    assert found.value == pytest.approx(0.06)
    assert found.share_of_seeds > 0.9
    with pytest.raises(TrainError, match=r"expected models with as many seeds as one another, got \[2, 3\]"):
        better(one, of_seeds(0.0, 0.1))


@pytest.mark.parametrize(
    ("first_gain", "spread", "verdict"),
    [(0.2, 0.1, YES), (0.1, 0.1, NO), (0.1, 0.4, UNSAID), (0.0, 0.1, NO)],
)
def test_gains_are_compared_on_the_same_trials(first_gain: float, spread: float, verdict: str) -> None:
    base = entry(0.6)
    first = (entry(0.6 + first_gain, spread=spread), base)
    assert gains_more(first, (entry(0.7), base), "Pixels").verdict == verdict


def judgement(verdict: Verdict) -> Judgement:
    return Judgement(verdict=verdict, why=verdict)


@pytest.mark.parametrize(
    ("parts", "every", "some"),
    [
        ((YES, YES), YES, YES),
        ((YES, UNSAID), UNSAID, YES),
        ((YES, NO), NO, YES),
        ((UNSAID, UNSAID), UNSAID, UNSAID),
        ((UNSAID, NO), NO, UNSAID),
        ((NO, NO), NO, NO),
    ],
)
def test_parts_make_a_statement(parts: tuple[Verdict, Verdict], every: str, some: str) -> None:
    for order in (parts, parts[::-1]):
        assert all_of(*map(judgement, order)).verdict == every
        assert any_of(*map(judgement, order)).verdict == some
    assert all_of(*map(judgement, parts)).why == every, "the reason is that of what decided"


def line(
    *values: float, references: tuple[float, ...] = (), spread: float = 0.1, unfinished: str = ""
) -> dict[int, Entry]:
    """Entries of windows of 6 volumes that end at 2.7, 5.3, 8.0, … s."""
    found = {}
    for place, value in enumerate(values):
        reference = entry(references[place], spread=spread) if references else None
        found[2 * place - 4] = entry(value, spread=spread, reference=reference, unfinished=unfinished)
    return found


@pytest.mark.parametrize(
    ("own", "verdict"),
    [
        (line(0.50, 0.80, 0.9), YES),
        (line(0.80, 0.80, 0.9), NO),  # before anything can be known
        (line(0.50, 0.50, 0.9), NO),
        (line(0.50, 0.50, 0.5), NO),
        (line(0.50, 0.50, 0.9, references=(0.5, 0.8, 0.9)), NO),
        (line(0.50, 0.80, 0.9, references=(0.5, 0.8, 0.9)), YES),
        (line(0.50, 0.50, 0.5, references=(0.8, 0.8, 0.9)), NO),
        (line(0.50, 0.52, 0.9, spread=0.2), UNSAID),
        (line(0.50, 0.80, 0.9, unfinished="the loss still fell"), UNSAID),
    ],
)
def test_decoding_begins_where_windows_first_hold_something(own: dict[int, Entry], verdict: str) -> None:
    finding = begins(own, 6, "a model")
    assert finding.verdict == verdict
    assert "Windows end at 2.7, 5.3, 8.0 s after onset" in finding.here


@pytest.mark.parametrize(
    ("own", "one", "verdict"),
    [
        ({3: 0.9, 7: 0.8}, {3: 0.9, 7: 0.5}, YES),
        ({3: 0.9, 7: 0.5}, {3: 0.9, 7: 0.5}, NO),
        ({3: 0.9, 7: 0.8}, {3: 0.9, 7: 0.9}, NO),
        ({0: 0.7, 3: 0.9, 7: 0.8}, {0: 0.9, 3: 0.9, 7: 0.5}, NO),  # not best at its own time
        ({-4: 0.4, 3: 0.9, 7: 0.8}, {-4: 0.5, 3: 0.9, 7: 0.5}, YES),  # where neither decodes, none is best
    ],
)
def test_specialised_models_last(own: dict[int, float], one: dict[int, float], verdict: str) -> None:
    own_line, one_line = ({at: entry(value, spread=0.1) for at, value in each.items()} for each in (own, one))
    assert lasts(own_line, one_line, "a model").verdict == verdict


@pytest.mark.parametrize(("before", "after", "verdict"), [(0.9, 0.9, YES), (0.9, 0.5, NO)])
def test_neighbours_are_looked_for_one_trial_away(before: float, after: float, verdict: str) -> None:
    elsewhere = {offset: entry(0.5, spread=0.1) for offset in range(-5, 10)}
    line_before, line_after = (elsewhere | {at: entry(value)} for at, value in ((0, before), (6, after)))
    assert shows_neighbours(line_before, line_after, 3).verdict == verdict
