"""Every formula against one written out, or another library's; and what must hold for any pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import distance
from scipy.stats import pearsonr

from train.evaluation.metrics import (
    correlation_distance,
    cosine_distance,
    mean_iou,
    pixcorr,
    ssim,
    two_way,
    two_way_by_picture,
)

SIZE = (5, 24, 20, 3)
Metric = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def shown(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Pictures with structure at many scales."""
    noise = rng.normal(size=SIZE)
    smoothed: NDArray[np.float64] = gaussian_filter(noise, (0, 2, 2, 0))
    return np.clip(128 + 400 * smoothed, 0, 255).astype(np.uint8)


@pytest.fixture
def decoded(shown: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    return np.clip(0.6 * shown + rng.normal(40, 30, size=SIZE), 0, 255).astype(np.uint8)


def test_pixcorr_is_pearsons_r(shown: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> None:
    expected = [
        pearsonr(a.ravel() / 255, b.ravel() / 255).statistic for a, b in zip(shown, decoded, strict=True)
    ]
    np.testing.assert_allclose(pixcorr(shown, decoded), expected, rtol=1e-12)


def ssim_written_out(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Wang et al.'s equation 13 at every pixel whose window lies inside, under scipy's Gaussian."""
    x, y = ((picture / 255.0) @ [0.2125, 0.7154, 0.0721] for picture in (one, other))

    def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
        smoothed: NDArray[np.float64] = gaussian_filter(values, 1.5, truncate=3.5)
        return smoothed

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float((above / below)[5:-5, 5:-5].mean())


def test_ssim_is_its_equation(shown: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> None:
    expected = [ssim_written_out(a, b) for a, b in zip(shown, decoded, strict=True)]
    found = ssim(shown, decoded)
    assert 0.05 < found.min() < found.max() < 0.95  # not at an end, where a wrong constant would not show
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def two_way_written_out(true: NDArray[np.float64], decoded: NDArray[np.float64]) -> list[float]:
    n = len(true)
    scores = []
    for j in range(n):
        own = np.corrcoef(true[j], decoded[j])[0, 1]
        below = [np.corrcoef(true[i], decoded[j])[0, 1] < own for i in range(n) if i != j]
        scores.append(sum(below) / (n - 1))
    return scores


def test_two_way_identification_is_its_definition(rng: np.random.Generator) -> None:
    true = rng.normal(size=(40, 30))
    decoded = true + 3 * rng.normal(size=true.shape)
    expected = two_way_written_out(true, decoded)
    assert 0.5 < np.mean(expected) < 0.95
    np.testing.assert_allclose(two_way(true, decoded), expected, rtol=1e-12)
    np.testing.assert_allclose(two_way(true.astype(np.float32), decoded), expected, atol=1e-6)


def test_by_picture_is_its_definition(rng: np.random.Generator) -> None:
    true = rng.normal(size=(40, 30))
    decoded = true + 2 * rng.normal(size=true.shape) + 3 * rng.normal(size=30)
    expected = []
    for i in range(40):
        own = np.corrcoef(true[i], decoded[i])[0, 1]
        beaten = sum(np.corrcoef(true[i], decoded[j])[0, 1] < own for j in range(40) if j != i)
        expected.append(beaten / 39)
    np.testing.assert_allclose(two_way_by_picture(true, decoded), expected, rtol=1e-12)
    np.testing.assert_allclose(two_way_by_picture(true.astype(np.float32), decoded), expected, atol=1e-6)
    assert not np.array_equal(two_way(true, decoded), expected)


def test_shuffled_trials_are_identified_by_chance(rng: np.random.Generator) -> None:
    true = rng.normal(size=(400, 50))
    decoded = true[rng.permutation(400)]
    assert abs(two_way(true, decoded).mean() - 0.5) < 0.05
    assert (two_way(true, true) == 1).all()


def test_correlation_distance_is_scipys(rng: np.random.Generator) -> None:
    true, decoded = rng.normal(size=(2, 12, 33)).astype(np.float32)
    expected = [
        distance.correlation(a, b) for a, b in zip(true.astype(float), decoded.astype(float), strict=True)
    ]
    np.testing.assert_allclose(correlation_distance(true, decoded), expected, rtol=1e-12)
    np.testing.assert_allclose(correlation_distance(-true, true), 2.0)
    assert correlation_distance(np.ones((1, 9)), decoded[:1, :9])[0] == 1.0


def test_cosine_distance_is_scipys(rng: np.random.Generator) -> None:
    true, decoded = rng.normal(size=(2, 12, 33)).astype(np.float32)
    expected = [distance.cosine(a, b) for a, b in zip(true.astype(float), decoded.astype(float), strict=True)]
    np.testing.assert_allclose(cosine_distance(true, decoded), expected, rtol=1e-12)


def iou_written_out(true: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float:
    per_class: list[float] = []
    for label in set(true.tolist()):
        inter = sum(a == label and b == label for a, b in zip(true, decoded, strict=True))
        union = sum(a == label or b == label for a, b in zip(true, decoded, strict=True))
        per_class.append(inter / union)
    return sum(per_class) / len(per_class)


MAPS = arrays(
    np.uint8, st.tuples(st.just(2), st.integers(1, 30)), elements=st.sampled_from([0, 1, 2, 149, 255])
)


@given(MAPS)
def test_mean_iou_is_its_definition(maps: NDArray[np.uint8]) -> None:
    one, other = maps[:1], maps[1:]
    found = mean_iou(one, other)
    assert found == pytest.approx(iou_written_out(maps[0], maps[1]))
    assert mean_iou(other, one) == pytest.approx(iou_written_out(maps[1], maps[0]))
    assert mean_iou(one, one) == [1.0]
    assert (found == 1.0).all() == np.array_equal(one, other)


def test_mean_iou_of_an_example() -> None:
    # Class 1: 1 of 3 pixels shared; class 2: 1 of 2; class 3: 0, where the true map has it.
    one, other = np.array([[1, 1, 2, 2]], np.uint8), np.array([[1, 3, 1, 2]], np.uint8)
    assert mean_iou(one, other) == [(1 / 3 + 1 / 2) / 2]
    assert mean_iou(other, one) == [(1 / 3 + 1 / 2 + 0) / 3]


PICTURES = arrays(np.uint8, (2, 12, 12, 3))


@settings(max_examples=30)
@given(PICTURES)
def test_a_picture_is_like_itself_and_likeness_is_mutual(pictures: NDArray[np.uint8]) -> None:
    one, other = pictures[:1], pictures[1:]
    assert ssim(one, one) == pytest.approx(1.0)
    assert pixcorr(one, one) == pytest.approx(1.0 if one.std() else 0.0)
    for metric in (ssim, pixcorr):
        assert metric(one, other) == pytest.approx(metric(other, one), abs=1e-12)
        assert -1 - 1e-9 <= metric(one, other)[0] <= 1 + 1e-9


@settings(max_examples=30)
@given(
    arrays(np.float64, (2, 6, 8), elements=st.floats(-10, 10)),
    st.floats(0.1, 10),
    st.floats(-10, 10),
)
def test_correlation_metrics_ignore_gain_and_offset(
    features: NDArray[np.float64], gain: float, offset: float
) -> None:
    # Steps, so that no two values differ by less than the gain's and offset's rounding.
    true, decoded = np.round(features)
    moved = gain * decoded + offset
    np.testing.assert_allclose(
        correlation_distance(true, moved), correlation_distance(true, decoded), atol=1e-9
    )
    scaled = np.where(np.abs(decoded).sum(axis=1, keepdims=True) == 0, 1.0, decoded)
    true = np.where(np.abs(true).sum(axis=1, keepdims=True) == 0, 1.0, true)
    np.testing.assert_allclose(
        cosine_distance(true, gain * scaled), cosine_distance(true, scaled), atol=1e-12
    )


def test_trials_are_scored_in_any_order_alike(
    shown: NDArray[np.uint8], decoded: NDArray[np.uint8], rng: np.random.Generator
) -> None:
    order = rng.permutation(len(shown))
    flat = [pictures.reshape(len(pictures), -1) for pictures in (shown, decoded)]
    of_pictures: list[Metric] = [ssim, pixcorr]
    for metric in of_pictures:
        np.testing.assert_allclose(metric(shown[order], decoded[order]), metric(shown, decoded)[order])
    of_features: list[Metric] = [two_way, correlation_distance, cosine_distance, mean_iou]
    for metric in of_features:
        np.testing.assert_allclose(
            metric(flat[0][order], flat[1][order]), metric(*flat)[order], rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("metric", [pixcorr, ssim, correlation_distance, cosine_distance, mean_iou])
def test_trials_that_do_not_pair_are_refused(metric: Metric, shown: NDArray[np.uint8]) -> None:
    trials = shown if metric in (pixcorr, ssim) else shown.reshape(len(shown), -1)
    with pytest.raises(ValueError, match="equal shape"):
        metric(trials, trials[:-1])
