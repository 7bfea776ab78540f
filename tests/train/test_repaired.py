"""Volumes that NSD's authors repaired: left out of fits, of statistics and of trials, and counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
from nilearn.signal import clean

from nsd import SYNTHETIC_FILE, Layout, Run, RunKey, read_roi, repairs
from realtime.bundle.spec import Window
from realtime.preprocessing.drift import cosine_basis
from realtime.preprocessing.stream import StreamingPreprocessor
from train.data.cache import Cache, left_out, prepare
from train.data.dataset import averaged_windows, examples
from train.data.found import found
from train.data.prior import measure_priors
from train.data.trials import inside_run, read_volumes, recorded
from train.errors import TrainError
from train.evaluation.held_out import held_out_groups
from train.recipe import Recipe

FP16 = 1e-3
REPAIRED = RunKey(1, 2, 2)
VOLUMES = range(152, 185)


@pytest.fixture(scope="module")
def root(tiny_nsd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs in the place of subject 1's session 2, and nothing that says that they are synthetic."""
    made = tmp_path_factory.mktemp("as-nsd")
    theirs, ours = Layout(tiny_nsd), Layout(made)
    links = {ours.roi(1): theirs.roi(1), ours.expdesign(): theirs.expdesign()}
    for run in (1, 2, 3, 4):
        links[ours.timeseries(1, 2, run)] = theirs.timeseries(1, 1, run)
        links[ours.design(1, 2, run)] = theirs.design(1, 1, run)
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    return made


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    """It tests images, so that all runs train and test."""
    return msgspec.structs.replace(
        tiny_recipe,
        split="standard",
        preprocessing=msgspec.structs.replace(tiny_recipe.preprocessing, train_on=("whole_run", "causal")),
    )


@pytest.fixture(scope="module")
def cache(root: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return prepare(root, 1, recipe, tmp_path_factory.mktemp("prepared") / "cache")


def series(root: Path, run: RunKey = REPAIRED) -> np.ndarray:
    layout = Layout(root)
    return Run(layout, *run).roi_series(read_roi(layout, 1))


def touches(cache: Cache, trial: int, window: Window) -> bool:
    item = cache.trials[trial]
    first = item.trial.onset_volume + window.offset_volumes
    return item.run == REPAIRED and bool({*range(first, first + window.length_volumes)} & {*VOLUMES})


@pytest.mark.filterwarnings("ignore:When confounds are provided")
def test_whole_runs_are_fitted_to_what_was_recorded(cache: Cache, root: Path, recipe: Recipe) -> None:
    index = cache.runs.index(REPAIRED)
    kept = np.setdiff1d(np.arange(225), VOLUMES)
    expected = clean(
        series(root).astype(np.float64),
        confounds=cosine_basis(225, 4 / 3, recipe.preprocessing.high_pass_hz),
        sample_mask=kept,
        detrend=False,
        standardize="zscore_sample",
        standardize_confounds=False,
    )
    z_scores = cache.form("whole_run")[index]
    np.testing.assert_allclose(z_scores[kept], expected, rtol=FP16, atol=FP16)
    assert not z_scores[VOLUMES].any()


def test_streams_censor_them(cache: Cache, root: Path, recipe: Recipe) -> None:
    rows = series(root)
    stream = StreamingPreprocessor(
        np.ones((rows.shape[1], 1, 1), dtype=bool),
        225,
        4 / 3,
        recipe.preprocessing,
        cache.priors.voxels,
        6,
        drift_prior=cache.priors.drift,
    )
    windows = {}
    for volume, row in enumerate(rows):
        stream.push_row(volume, row, censored="repaired" if volume in VOLUMES else "")
        if (window := stream.window()) is not None:
            windows[volume] = window
    here = [place for place, item in enumerate(cache.trials) if item.run == REPAIRED]
    again = averaged_windows(cache, [np.array([place]) for place in here], recipe.window, "causal", recipe)
    for place, made in zip(here, again, strict=True):
        expected = windows[cache.trials[place].trial.onset_volume + 8]
        np.testing.assert_allclose(cache.form("causal")[place].T, expected, rtol=FP16, atol=FP16)
        np.testing.assert_allclose(made, expected, rtol=FP16, atol=FP16)


def test_the_prior_is_of_other_runs(cache: Cache, root: Path, recipe: Recipe) -> None:
    others = [series(root, run) for run in cache.runs if run != REPAIRED]
    expected = measure_priors(others, recipe.preprocessing.high_pass_hz).voxels
    np.testing.assert_array_equal(cache.priors.voxels.mean, expected.mean)
    np.testing.assert_array_equal(cache.priors.voxels.sd, expected.sd)


@pytest.mark.parametrize("offset", [-3, 0, 3, 9])
def test_trials_whose_window_touches_them_are_left_out(cache: Cache, offset: int) -> None:
    window = Window(offset_volumes=offset, length_volumes=6)
    every = inside_run(cache, np.arange(len(cache.trials)), window)
    left_out = np.setdiff1d(every, recorded(cache, every, window))
    assert left_out.tolist() == [trial for trial in every.tolist() if touches(cache, trial, window)]
    assert 10 <= len(left_out) <= 13
    with pytest.raises(TrainError, match="holds volumes that NSD's authors repaired"):
        examples(cache, left_out[:1], window, "whole_run")


def test_none_of_them_is_tested_on(cache: Cache, recipe: Recipe) -> None:
    cache = dataclasses.replace(cache, is_test=np.ones(len(cache.trials), dtype=np.bool_))
    groups = held_out_groups(cache, recipe, [recipe.window], average=True, seed=1, n_groups=1000)
    tested = np.concatenate(groups)
    assert not any(touches(cache, trial, recipe.window) for trial in tested.tolist())
    tests = inside_run(cache, np.flatnonzero(cache.is_test), recipe.window)
    missing = np.setdiff1d(tests, tested)
    assert len(missing)
    assert all(touches(cache, trial, recipe.window) for trial in missing.tolist())


def test_they_are_counted(cache: Cache, root: Path, recipe: Recipe) -> None:
    here = found(Layout(root), cache, recipe)
    every = inside_run(cache, np.arange(len(cache.trials)), recipe.window).tolist()
    assert here.repaired == sum(touches(cache, trial, recipe.window) for trial in every) > 0
    assert (here.sessions, here.runs, here.presentations) == (1, 4, len(cache.trials))
    assert here.shared_images == len(np.unique(cache.images[cache.is_test]))
    assert here.in_words(1) == (
        "Found on disk: 1 of the 40 sessions of subject 1 "
        f"(4 of 480 runs, {len(cache.trials)} presentations), {here.shared_images} of the 1000 shared "
        f"images; {here.repaired} presentations are left out, whose volumes NSD's authors repaired."
    )


def test_a_beta_rests_on_the_volumes_after_its_onset(cache: Cache, recipe: Recipe) -> None:
    betas = msgspec.structs.replace(
        recipe,
        window=Window(offset_volumes=0, length_volumes=1),
        preprocessing=msgspec.structs.replace(recipe.preprocessing, train_on=("betas",)),
    )
    assert read_volumes(betas) == Window(offset_volumes=0, length_volumes=9)
    cache = dataclasses.replace(cache, is_test=np.ones(len(cache.trials), dtype=np.bool_))
    groups = held_out_groups(cache, betas, [betas.window], average=True, seed=1, n_groups=1000)
    assert not any(touches(cache, trial, read_volumes(betas)) for trial in np.concatenate(groups).tolist())


def test_a_joined_run_is_not_used(
    root: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = RunKey(1, 2, 3)
    monkeypatch.setattr(repairs, "JOINED", (joined,))
    cache = prepare(root, 1, recipe, tmp_path / "cache")
    used = recorded(cache, np.arange(len(cache.trials)), recipe.window)
    assert {cache.trials[trial].run for trial in used.tolist()} == set(cache.runs) - {joined}


def test_as_the_released_code_does_they_are_used(
    cache: Cache, root: Path, recipe: Recipe, tmp_path: Path
) -> None:
    as_released = msgspec.structs.replace(
        recipe, preprocessing=msgspec.structs.replace(recipe.preprocessing, repaired_volumes="use")
    )
    used = prepare(root, 1, as_released, tmp_path / "cache")
    every = np.arange(len(used.trials))
    assert np.array_equal(recorded(used, every, recipe.window), every)
    np.testing.assert_array_equal(used.rows[used.runs.index(REPAIRED)], series(root))
    with pytest.raises(TrainError, match="was prepared with other repaired volumes"):
        prepare(root, 1, as_released, cache.folder)


def test_a_synthetic_subject_has_none(tiny_cache: Cache, tiny_nsd: Path) -> None:
    assert (tiny_nsd / SYNTHETIC_FILE).exists()
    assert not tiny_cache.repaired
    assert np.isfinite(tiny_cache.rows).all()


def test_recordings_at_another_tr_are_not_nsds(root: Path, recipe: Recipe) -> None:
    preprocessing = msgspec.structs.replace(recipe.preprocessing, tr_s=2.0)
    ours = msgspec.structs.replace(recipe, preprocessing=preprocessing)
    assert left_out(Layout(root), [REPAIRED], recipe) == {REPAIRED: VOLUMES}
    assert left_out(Layout(root), [REPAIRED], ours) == {}
