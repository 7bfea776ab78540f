from __future__ import annotations

import numpy as np
import pytest

from realtime.report.identification import (
    Identification,
    hog,
    identification,
    pixcorr,
    pixels,
    stack,
    two_way,
)


def interval(found: Identification) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def double_loop(true: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """The definition, word for word."""
    n_trials = len(true)
    scores = np.zeros(n_trials)
    for j in range(n_trials):
        own = np.corrcoef(true[j], decoded[j])[0, 1]
        others = [np.corrcoef(true[i], decoded[j])[0, 1] for i in range(n_trials) if i != j]
        scores[j] = np.mean([other < own for other in others])
    return scores


@pytest.mark.parametrize("noise", [0.0, 1.0, 5.0])
def test_two_way_is_the_definition(noise: float) -> None:
    rng = np.random.default_rng(1)
    true = rng.standard_normal((17, 40)) + 3
    decoded = true + noise * rng.standard_normal(true.shape)
    assert np.array_equal(two_way(true, decoded), double_loop(true, decoded))


def test_shuffled_frames_are_at_chance() -> None:
    rng = np.random.default_rng(2)
    true = rng.standard_normal((400, 50))
    found = identification(true, rng.permutation(true))
    assert found.chance == 0.5
    assert found.value == pytest.approx(0.5, abs=0.05)
    low, high = interval(found)
    assert low < 0.5 < high


def test_the_interval_covers_the_mean_of_the_population_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    noise = 6.0

    def draw(n_trials: int) -> tuple[np.ndarray, np.ndarray]:
        true = rng.standard_normal((n_trials, 30))
        return true, true + noise * rng.standard_normal(true.shape)

    population = identification(*draw(1500), n_resamples=10).value
    drawn = [identification(*draw(60), n_resamples=400, seed=seed) for seed in range(120)]
    assert population is not None
    covered = np.mean([low <= population <= high for low, high in map(interval, drawn)])
    assert 0.85 < covered < 1.0


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    rng = np.random.default_rng(4)
    true, decoded = rng.standard_normal((2, 20, 30))
    assert identification(true, decoded) == identification(true, decoded)
    assert identification(true, decoded, seed=1).low != identification(true, decoded, seed=2).low


@pytest.mark.parametrize("n_trials", [0, 1])
def test_with_less_than_two_trials_there_is_no_value(n_trials: int) -> None:
    features = np.ones((n_trials, 5))
    found = identification(features, features)
    assert (found.value, found.low, found.high, found.n_trials) == (None, None, None, n_trials)


def test_features_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="expected two arrays"):
        two_way(np.ones((3, 4)), np.ones((3, 5)))


def test_a_frame_of_one_colour_identifies_nothing() -> None:
    true = np.random.default_rng(5).standard_normal((6, 12))
    decoded = np.full((6, 12), 0.1)
    assert not two_way(true, decoded).any()


def test_pixcorr_is_pearson_over_all_pixels() -> None:
    a, b = np.random.default_rng(6).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert pixcorr(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert pixcorr(a, 255 - a) == pytest.approx(-1)
    assert pixels(a).min() >= 0
    assert pixels(a).max() <= 1


def disc(radius: int, colour: tuple[int, int, int]) -> np.ndarray:
    y, x = np.mgrid[:64, :64] - 32
    image = np.full((64, 64, 3), 128, dtype=np.uint8)
    image[np.hypot(x, y) < radius] = colour
    return image


def square(edge: int, colour: tuple[int, int, int]) -> np.ndarray:
    image = np.full((64, 64, 3), 128, dtype=np.uint8)
    image[32 - edge : 32 + edge, 32 - edge : 32 + edge] = colour
    return image


def test_hog_sees_shape_and_not_colour_or_its_sign() -> None:
    red, blue_disc, red_square = disc(20, (250, 40, 40)), disc(20, (10, 20, 90)), square(20, (250, 40, 40))
    same_shape = np.corrcoef(hog(red), hog(blue_disc))[0, 1]
    other_shape = np.corrcoef(hog(red), hog(red_square))[0, 1]
    assert same_shape > 0.95
    assert same_shape > other_shape + 0.2


def test_hog_of_a_vertical_edge_votes_for_the_horizontal_gradient_alone() -> None:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:, 32:] = 200
    cells = hog(image).reshape(7, 7, 4, 9)
    assert cells[:, :, :, 1:8].max() == 0  # bins at 0 and 180 degrees share a gradient of angle 0
    assert cells[:, :, :, [0, 8]].max() > 0.2


def test_hog_does_not_depend_on_the_size_of_the_picture() -> None:
    small = disc(20, (200, 50, 50))
    large = small.repeat(3, axis=0).repeat(3, axis=1)
    assert np.array_equal(hog(small), hog(large))
    assert not hog(np.full((64, 64, 3), 77, dtype=np.uint8)).any()


def test_no_trials_stack_to_an_empty_table() -> None:
    assert stack([]).shape == (0, 0)
    assert stack([np.ones(3), np.zeros(3)]).shape == (2, 3)
