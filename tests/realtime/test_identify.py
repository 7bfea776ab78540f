from __future__ import annotations

import math

import msgspec
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
    two_way_by_picture,
)


def interval(found: Identification) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return covariance / math.sqrt(spread)


def each_decode_against_all_pictures(true: np.ndarray, decoded: np.ndarray) -> list[float]:
    pictures, decodes = true.tolist(), decoded.tolist()
    scores = []
    for j, decode in enumerate(decodes):
        own = pearson(pictures[j], decode)
        beaten = 0
        for i, picture in enumerate(pictures):
            if i != j and pearson(picture, decode) < own:
                beaten += 1
        scores.append(beaten / (len(pictures) - 1))
    return scores


def each_picture_against_all_decodes(true: np.ndarray, decoded: np.ndarray) -> list[float]:
    pictures, decodes = true.tolist(), decoded.tolist()
    scores = []
    for i, picture in enumerate(pictures):
        own = pearson(picture, decodes[i])
        beaten = 0
        for j, decode in enumerate(decodes):
            if j != i and pearson(picture, decode) < own:
                beaten += 1
        scores.append(beaten / (len(decodes) - 1))
    return scores


@pytest.mark.parametrize("noise", [0.0, 1.0, 5.0])
def test_both_directions_are_their_definitions(noise: float) -> None:
    rng = np.random.default_rng(1)
    true = rng.standard_normal((17, 40)) + 3
    # Decodes that are alike, as those of weak decoders are: the two directions then differ.
    decoded = true + noise * (rng.standard_normal(true.shape) + rng.standard_normal(40))
    by_decode = each_decode_against_all_pictures(true, decoded)
    by_picture = each_picture_against_all_decodes(true, decoded)
    np.testing.assert_allclose(two_way(true, decoded), by_decode, atol=1e-6)
    np.testing.assert_allclose(two_way_by_picture(true, decoded), by_picture, atol=1e-6)
    found = identification(true, decoded)
    assert found.by_picture is not None
    assert found.value == pytest.approx(np.mean(by_decode), abs=1e-6)
    assert found.by_picture.value == pytest.approx(np.mean(by_picture), abs=1e-6)
    assert found.by_picture.low <= found.by_picture.value <= found.by_picture.high
    if noise == 5:
        assert found.value != found.by_picture.value


def test_a_score_of_an_earlier_version_has_one_direction() -> None:
    earlier = b'{"value": 0.8, "low": 0.7, "high": 0.9, "chance": 0.5, "n_trials": 5}'
    assert msgspec.json.decode(earlier, type=Identification).by_picture is None


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
    assert found.by_picture is None


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
