"""Two-way identification in both directions, against plain loops in exact arithmetic, where ties are ties."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from realtime.report.identification import identification
from train.evaluation.results_table import METRICS, Metric, NotComputed, Score, Seen, per_trial

from .compared import compare

Rows = list[list[Fraction]]
IDENTIFICATIONS = [metric for metric in METRICS if metric.chance == 0.5]
KINDS = sorted({metric.kind for metric in IDENTIFICATIONS})


def signed_square(one: list[Fraction], other: list[Fraction]) -> Fraction:
    """Pearson's r as sign(r) r^2, which is rational and orders pairs as r does; 0 where a row is constant."""
    d = len(one)
    mean_one, mean_other = sum(one, Fraction(0)) / d, sum(other, Fraction(0)) / d
    shared = of_one = of_other = Fraction(0)
    for x, y in zip(one, other, strict=True):
        shared += (x - mean_one) * (y - mean_other)
        of_one += (x - mean_one) ** 2
        of_other += (y - mean_other) ** 2
    return shared * abs(shared) / (of_one * of_other) if of_one and of_other else Fraction(0)


def reference(true: NDArray[np.floating], decoded: NDArray[np.floating], *, by_picture: bool) -> list[float]:
    """By decode: the share of the other pictures that a decode is less like than its own. By picture: the
    share of the other decodes that a picture is less like than its own.
    """
    pictures: Rows = [[Fraction(float(value)) for value in row] for row in true]
    decodes: Rows = [[Fraction(float(value)) for value in row] for row in decoded]
    n, scores = len(pictures), []
    for trial in range(n):
        own, won = signed_square(pictures[trial], decodes[trial]), 0
        for other in range(n):
            if other == trial:
                continue
            if by_picture:
                compared = signed_square(pictures[trial], decodes[other])
            else:
                compared = signed_square(pictures[other], decodes[trial])
            won += compared < own
        scores.append(won / (n - 1))
    return scores


def features(seed: int, n: int = 18, d: int = 7) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pictures that are shown again, decodes that are alike, a constant row of each."""
    rng = np.random.default_rng(seed)
    shown = rng.normal(size=(n, d))[rng.integers(0, n // 2, size=n)]
    decoded = shown + 1.5 * rng.normal(size=(n, d)) + rng.normal(size=d)
    decoded[rng.integers(0, n, size=3)] = decoded[0]
    shown[1], decoded[2] = 0.1, 0.3
    return shown.astype(np.float32), decoded.astype(np.float32)


def seen(kinds: dict[str, NDArray[np.float32]]) -> Seen:
    """Those features, and as many pictures without any structure for the metrics that need pictures."""
    n = len(next(iter(kinds.values())))
    unlike: dict[str, NDArray[Any]] = {
        "pictures": np.zeros((n, 16, 16, 3), np.uint8),
        "semantic_map": np.zeros((n, 4), np.uint8),
        **{kind: np.ones((n, 3)) for kind in ("efficientnet_b1", "swav", "dreamsim")},
    }
    return Seen(features=unlike | kinds, missing={})


@pytest.fixture(scope="module")
def sets() -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Shown and decoded features of every kind that identifies."""
    pairs = {kind: features(seed) for seed, kind in enumerate(KINDS)}
    return {kind: pair[0] for kind, pair in pairs.items()}, {kind: pair[1] for kind, pair in pairs.items()}


def test_every_identification_has_both_directions() -> None:
    assert len(IDENTIFICATIONS) == 2 * len(KINDS) == 14
    for kind in KINDS:
        names = [metric.name for metric in IDENTIFICATIONS if metric.kind == kind]
        assert names == [names[0], f"{names[0]} by picture"]


@pytest.mark.parametrize("metric", IDENTIFICATIONS, ids=lambda metric: metric.name)
def test_every_identification_is_the_references(
    metric: Metric, sets: tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]
) -> None:
    shown, decoded = sets
    expected = reference(
        shown[metric.kind], decoded[metric.kind], by_picture=metric.name.endswith(" by picture")
    )
    other = reference(shown[metric.kind], decoded[metric.kind], by_picture=metric.way == "by decode")
    assert expected != other
    found = per_trial(seen(shown), seen(decoded))[metric.name]
    assert not isinstance(found, NotComputed)
    np.testing.assert_allclose(found, np.array(expected), rtol=0, atol=1e-6)
    cell = compare(seen(shown), seen(decoded))[metric.name]
    assert isinstance(cell, Score)
    assert cell.value == pytest.approx(sum(expected) / len(expected), abs=1e-6)


def test_a_runs_report_is_the_references_too() -> None:
    shown, decoded = (rows.astype(np.float64) for rows in features(50))
    found = identification(shown, decoded, n_resamples=10)
    assert found.by_picture
    for value, by_picture in ((found.value, False), (found.by_picture.value, True)):
        expected = reference(shown, decoded, by_picture=by_picture)
        assert value == pytest.approx(sum(expected) / len(expected), abs=1e-6)


SMALL = st.integers(2, 7).flatmap(
    lambda n: st.integers(2, 5).flatmap(
        lambda d: arrays(np.float64, (2, n, d), elements=st.integers(-3, 3).map(float))
    )
)


@settings(max_examples=150, deadline=None)
@given(SMALL)
def test_ties_do_not_count(rows: NDArray[np.float64]) -> None:
    """Few levels, so that rows are equal, scaled or shifted copies of each other, or constant."""
    shown, decoded = rows
    for metric in (metric for metric in IDENTIFICATIONS if metric.kind == "pixels"):
        by_picture = metric.name.endswith(" by picture")
        expected = reference(shown, decoded, by_picture=by_picture)
        np.testing.assert_allclose(metric.formula(shown, decoded), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [5, 9, 17, 38])
@pytest.mark.parametrize("d", [3, 7, 64])
def test_a_picture_that_is_shown_again_is_a_tie_wherever_it_stands(n: int, d: int) -> None:
    """Of one picture in all trials no decode can be the more like, however the table was rounded."""
    rng = np.random.default_rng(n * d)
    shown = np.repeat(rng.normal(size=(1, d)), n, axis=0)
    decoded = rng.normal(size=(n, d))
    by_decode, by_picture = (metric for metric in IDENTIFICATIONS if metric.kind == "pixels")
    assert not by_decode.formula(shown, decoded).any()
    assert not by_picture.formula(decoded, shown).any()
