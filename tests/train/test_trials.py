"""Which presentations train and which test: nothing held out is ever trained on."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from nsd import Layout, Stimuli, shared_images
from realtime.bundle.spec import Window
from train.data.cache import Cache, prepare
from train.data.dataset import averaged_windows, examples
from train.data.trials import (
    grouped,
    held_out_images,
    inside_run,
    n_warming,
    one_of_each,
    training_trials,
)
from train.errors import TrainError
from train.evaluation.held_out import held_out_groups, images_of
from train.fitting.pretrain import base_pictures
from train.recipe import Recipe


@pytest.fixture
def cache(tiny_cache: Cache) -> Cache:
    return tiny_cache


@pytest.fixture(scope="module")
def standard(tiny_nsd: Path, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    recipe = msgspec.structs.replace(tiny_recipe, split="standard")
    return prepare(tiny_nsd, 1, recipe, tmp_path_factory.mktemp("standard") / "cache")


def test_whole_runs_are_held_out_and_so_are_their_images(cache: Cache) -> None:
    held_out = held_out_images([cache])
    trains = training_trials(cache, held_out)
    assert not {cache.trials[trial].run for trial in trains} & set(cache.test_runs)
    assert not np.isin(cache.images[trains], cache.images[cache.is_test]).any()
    left_out = np.setdiff1d(np.arange(len(cache.trials)), trains)
    assert np.isin(cache.images[left_out], held_out).all()


def test_what_one_subject_is_tested_on_trains_no_other(cache: Cache) -> None:
    other = np.unique(cache.images[~cache.is_test])[:3]
    trains = training_trials(cache, np.union1d(held_out_images([cache]), other))
    assert not np.isin(cache.images[trains], other).any()


def test_the_standard_split_holds_out_the_shared_images(standard: Cache, tiny_nsd: Path) -> None:
    shared = shared_images(Layout(tiny_nsd))
    assert standard.test_runs == []
    assert standard.train_runs == standard.runs
    assert (standard.is_test == np.isin(standard.images, shared)).all()
    assert 0 < standard.is_test.sum() < len(standard.trials)


def test_sessions_are_counted_from_the_first(cache: Cache) -> None:
    every = training_trials(cache, held_out_images([cache]))
    assert np.array_equal(training_trials(cache, held_out_images([cache]), 1), every)  # there is one session
    assert not len(training_trials(cache, held_out_images([cache]), 0))


def test_shared_images_can_be_kept_out_of_the_training_runs_too(
    cache: Cache, tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(tiny_recipe, split="runs-and-shared")
    kept = prepare(tiny_nsd, 1, recipe, tmp_path / "cache")
    shared = shared_images(Layout(tiny_nsd))
    assert kept.test_runs == cache.test_runs
    assert np.array_equal(kept.is_test, cache.is_test)
    assert np.isin(kept.images[kept.is_test], shared).any()
    trains = training_trials(kept, held_out_images([kept]))
    assert not np.isin(kept.images[trains], shared).any()
    others = training_trials(cache, held_out_images([cache]))
    assert np.array_equal(trains, others[~np.isin(cache.images[others], shared)])
    assert len(trains) < len(others)


def test_the_base_model_is_trained_on_no_shared_image(
    tiny_nsd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the natural world's objects, some are in the shared images only."""
    seen: list[int] = []

    def pictures(_: Stimuli, images: list[int]) -> NDArray[np.uint8]:
        seen.extend(images)
        return np.zeros((len(images), 64, 64, 3), dtype=np.uint8)

    monkeypatch.setattr(Stimuli, "images", pictures)
    for subject in (1, 8):
        base_pictures(tiny_nsd, subject, 9000, seed=1)
    assert len(seen) == 2 * (9000 + 256)
    assert not np.isin(seen, shared_images(Layout(tiny_nsd))).any()


def test_windows_lie_in_their_run(cache: Cache) -> None:
    every = np.arange(len(cache.trials))
    early, late = Window(offset_volumes=-12, length_volumes=6), Window(offset_volumes=200, length_volumes=6)
    assert 0 < len(inside_run(cache, every, early)) < len(every)
    onsets = [cache.trials[trial].trial.onset_volume for trial in inside_run(cache, every, late)]
    assert all(onset + 206 <= 225 for onset in onsets)


def test_one_presentation_of_each_image_is_drawn_by_seed(cache: Cache) -> None:
    every = np.arange(len(cache.trials))
    groups = grouped(cache, every)
    assert sum(map(len, groups)) == len(every)
    assert any(len(group) > 1 for group in groups), "no image was shown twice"
    drawn = one_of_each(cache, every, seed=1)
    assert len(drawn) == len(groups)
    assert all(one in group for (one,), group in zip(drawn, groups, strict=True))
    assert np.array_equal(drawn, one_of_each(cache, every, seed=1))
    assert not np.array_equal(drawn, one_of_each(cache, every, seed=2))


def test_the_same_presentations_are_tested_at_every_shift(cache: Cache, tiny_recipe: Recipe) -> None:
    windows = [Window(offset_volumes=offset, length_volumes=6) for offset in (-9, 3, 9)]
    groups = held_out_groups(cache, tiny_recipe, windows, average=False, seed=1, n_groups=1000)
    for window in windows:
        assert len(examples(cache, np.concatenate(groups), window, "whole_run").starts) == len(groups)
    few = held_out_groups(cache, tiny_recipe, windows, average=False, seed=1, n_groups=5)
    assert len(few) == 5
    with pytest.raises(TrainError, match="at least two held-out presentations"):
        held_out_groups(
            cache,
            tiny_recipe,
            [Window(offset_volumes=300, length_volumes=6)],
            average=False,
            seed=1,
            n_groups=5,
        )


@pytest.mark.parametrize("split", ["time-resolved", "standard"])
def test_none_is_left_out_for_being_early_and_those_are_counted(
    cache: Cache, standard: Cache, tiny_recipe: Recipe, split: str
) -> None:
    recipe = msgspec.structs.replace(tiny_recipe, split=split)
    tested = standard if split == "standard" else cache
    groups = held_out_groups(tested, recipe, [recipe.window], average=True, seed=1, n_groups=1000)
    trials = np.concatenate(groups)
    fit = inside_run(tested, np.flatnonzero(tested.is_test), recipe.window)
    assert np.array_equal(np.sort(trials), fit)
    warmup = recipe.preprocessing.warmup_volumes
    onsets = [tested.trials[trial].trial.onset_volume for trial in trials.tolist()]
    early = [onset for onset in onsets if len(range(onset + 9)) < warmup]  # volumes up to the window's last
    assert n_warming(tested, trials, recipe.window, warmup) == len(early) > 0
    assert n_warming(tested, trials, recipe.window, 1) == 0


def test_averaged_windows_are_means_over_an_images_presentations(
    standard: Cache, tiny_recipe: Recipe
) -> None:
    recipe = msgspec.structs.replace(tiny_recipe, split="standard")
    groups = held_out_groups(standard, recipe, [recipe.window], average=True, seed=1, n_groups=1000)
    assert len(np.unique(images_of(standard, groups))) == len(groups)
    averaged = averaged_windows(standard, groups, recipe.window, "whole_run", recipe)
    place = int(np.argmax([len(group) for group in groups]))
    assert len(groups[place]) > 1
    singles = averaged_windows(standard, list(groups[place][:, None]), recipe.window, "whole_run", recipe)
    expected = singles.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(averaged[place], expected, rtol=2e-3, atol=2e-3)


def test_causal_windows_of_any_start_are_what_the_runtime_would_feed(
    cache: Cache, tiny_recipe: Recipe
) -> None:
    groups = held_out_groups(cache, tiny_recipe, [tiny_recipe.window], average=False, seed=1, n_groups=20)
    made = averaged_windows(cache, groups, tiny_recipe.window, "causal", tiny_recipe)
    prepared = cache.form("causal")[np.concatenate(groups)].transpose(0, 2, 1)
    np.testing.assert_array_equal(made, prepared)
    later = Window(offset_volumes=4, length_volumes=6)
    assert not np.array_equal(averaged_windows(cache, groups, later, "causal", tiny_recipe), made)
