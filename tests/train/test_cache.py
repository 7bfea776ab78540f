"""Prepared recordings: equal to independent libraries, resumable, refused where they do not fit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import scipy.signal
import torch
from nilearn.signal import clean
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from nsd import Layout, NsdError, Run, read_betas, read_roi
from realtime.preprocessing.drift import cosine_basis
from realtime.preprocessing.stream import StreamingPreprocessor, causal_windows
from train.data.cache import Cache, prepare
from train.data.dataset import WindowData, examples
from train.data.prior import measure_priors
from train.errors import TrainError
from train.recipe import Recipe

from .test_lock import another_process_in

FP16 = 1e-3
"""Rounding of z-scores of some SD to float16, and a little."""


@pytest.fixture
def cache(tiny_cache: Cache) -> Cache:
    return tiny_cache


def recorded(root: Path, cache: Cache, index: int) -> NDArray[np.float64]:
    layout = Layout(root)
    return Run(layout, *cache.runs[index]).roi_series(read_roi(layout, 1)).astype(np.float64)


@pytest.mark.filterwarnings("ignore:When confounds are provided")
def test_recordings_at_another_tr_are_prepared_and_kept_apart(
    cache: Cache, tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    at_2_s = msgspec.structs.replace(
        tiny_recipe, preprocessing=msgspec.structs.replace(tiny_recipe.preprocessing, tr_s=2.0)
    )
    slower = prepare(tiny_nsd, 1, at_2_s, tmp_path / "cache")
    rows = recorded(tiny_nsd, slower, 3)
    basis = cosine_basis(225, 2.0, tiny_recipe.preprocessing.high_pass_hz)
    assert basis.shape[1] > cosine_basis(225, 4 / 3, tiny_recipe.preprocessing.high_pass_hz).shape[1]
    expected = clean(
        rows, confounds=basis, detrend=False, standardize="zscore_sample", standardize_confounds=False
    )
    np.testing.assert_allclose(slower.form("whole_run")[3], expected, rtol=FP16, atol=FP16)
    assert (slower.priors.voxels.sd < cache.priors.voxels.sd).all()
    for recipe, folder in ((at_2_s, cache.folder), (tiny_recipe, slower.folder)):
        with pytest.raises(TrainError, match="other preprocessing"):
            prepare(tiny_nsd, 1, recipe, folder)
    assert "tr_s" not in (cache.folder / "cache.json").read_text()  # as in caches of earlier releases


@pytest.mark.filterwarnings("ignore:When confounds are provided")
def test_a_run_is_what_nilearn_makes_of_it(cache: Cache, tiny_nsd: Path, tiny_recipe: Recipe) -> None:
    rows = recorded(tiny_nsd, cache, 3)
    basis = cosine_basis(225, 4 / 3, tiny_recipe.preprocessing.high_pass_hz)
    expected = clean(
        rows, confounds=basis, detrend=False, standardize="zscore_sample", standardize_confounds=False
    )
    np.testing.assert_allclose(cache.form("whole_run")[3], expected, rtol=FP16, atol=FP16)


def test_linear_is_what_scipy_makes_of_it(tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    linear = msgspec.structs.replace(
        tiny_recipe, preprocessing=msgspec.structs.replace(tiny_recipe.preprocessing, drift="linear")
    )
    cache = prepare(tiny_nsd, 1, linear, tmp_path / "cache")
    residuals = scipy.signal.detrend(recorded(tiny_nsd, cache, 3), axis=0)
    expected = residuals / residuals.std(axis=0, ddof=1)
    np.testing.assert_allclose(cache.form("whole_run")[3], expected, rtol=FP16, atol=FP16)


def test_causal_windows_are_the_runtimes(cache: Cache, tiny_nsd: Path, tiny_recipe: Recipe) -> None:
    index = 5
    rows = recorded(tiny_nsd, cache, index)
    stream = StreamingPreprocessor(
        np.ones((rows.shape[1], 1, 1), dtype=bool),
        225,
        4 / 3,
        tiny_recipe.preprocessing,
        cache.priors.voxels,
        6,
        drift_prior=cache.priors.drift,
    )
    windows = {}
    for volume, row in enumerate(rows):
        stream.push_row(volume, row)
        windows[volume] = stream.window()
    here = [place for place, item in enumerate(cache.trials) if item.run == cache.runs[index]]
    for place in here:
        expected = windows[cache.trials[place].trial.onset_volume + 8]
        assert expected is not None
        np.testing.assert_allclose(cache.form("causal")[place].T, expected, rtol=FP16, atol=FP16)


def test_the_priors_know_only_runs_that_train(cache: Cache, tiny_nsd: Path, tiny_recipe: Recipe) -> None:
    assert len(cache.train_runs) == 11
    means = [
        recorded(tiny_nsd, cache, index).mean(axis=0)
        for index, key in enumerate(cache.runs)
        if key in cache.train_runs
    ]
    np.testing.assert_allclose(cache.priors.voxels.mean, np.mean(means, axis=0), rtol=1e-6)
    trains = [cache.rows[index] for index, key in enumerate(cache.runs) if key in cache.train_runs]
    assert cache.priors.drift == measure_priors(trains, tiny_recipe.preprocessing.high_pass_hz).drift
    assert cache.priors.drift != measure_priors(cache.rows, tiny_recipe.preprocessing.high_pass_hz).drift


def test_without_a_prior_of_the_drifts_a_cache_is_as_before_there_was_one(
    cache: Cache, tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    replace = msgspec.structs.replace
    free = replace(tiny_recipe, preprocessing=replace(tiny_recipe.preprocessing, drift_prior=False))
    without = prepare(tiny_nsd, 1, free, tmp_path / "cache")
    assert without.priors.drift is None
    assert "drift_prior" not in json.loads((tmp_path / "cache" / "cache.json").read_text())["preprocessing"]
    np.testing.assert_array_equal(without.form("whole_run"), cache.form("whole_run"))
    item = without.trials[7]
    expected = causal_windows(
        without.rows[without.runs.index(item.run)],
        4 / 3,
        free.preprocessing,
        without.priors.voxels,
        6,
        [item.trial.onset_volume + 8],
    )
    np.testing.assert_array_equal(without.form("causal")[7].T, expected[0].astype(np.float16))
    assert not np.array_equal(without.form("causal")[7], cache.form("causal")[7])
    with pytest.raises(TrainError, match="was prepared with other preprocessing"):
        prepare(tiny_nsd, 1, tiny_recipe, tmp_path / "cache")


def test_runs_that_were_not_finished_are_made_again(
    cache: Cache, tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(cache.folder, folder)
    in_last_run = sum(item.run == cache.runs[-1] for item in cache.trials)
    for name, n_rows in (("whole_run", 1), ("causal", in_last_run)):
        array = np.load(folder / f"{name}.npy", mmap_mode="r+")
        array[-n_rows:] = 7  # half-written
        array.flush()
        done = np.load(folder / f"{name}.done.npy", mmap_mode="r+")
        done[-1] = 0
        done.flush()
    again = prepare(tiny_nsd, 1, tiny_recipe, folder)
    np.testing.assert_array_equal(again.form("whole_run"), cache.form("whole_run"))
    np.testing.assert_array_equal(again.form("causal"), cache.form("causal"))


def test_a_killed_preparation_goes_on(cache: Cache, tiny_nsd: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sub-01"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text((Path(__file__).parents[2] / "train" / "recipes" / "demo.toml").read_text())
    command = [sys.executable, "-m", "train", "prepare", "--nsd", str(tiny_nsd), "--subject", "1"]
    command += ["--out", str(tmp_path), "--recipe", str(recipe), "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    done = folder / "rows.done.npy"
    while not done.exists() or not np.load(done).any():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    for name in ("whole_run", "causal"):
        assert np.load(folder / f"{name}.done.npy").all()
        assert (folder / f"{name}.npy").read_bytes() == (cache.folder / f"{name}.npy").read_bytes()


def test_an_array_that_was_lost_is_made_again(
    cache: Cache, tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    shutil.copytree(cache.folder, tmp_path / "cache")
    (tmp_path / "cache" / "whole_run.npy").unlink()
    again = prepare(tiny_nsd, 1, tiny_recipe, tmp_path / "cache")
    np.testing.assert_array_equal(again.form("whole_run"), cache.form("whole_run"))


def test_a_damaged_run_is_named_though_a_worker_reads_it(
    tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    root = tmp_path / "nsd"
    shutil.copytree(tiny_nsd, root)
    path = Layout(root).timeseries(1, 1, 4)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(NsdError, match=rf"{path.name}: expected .* to be readable"):
        prepare(root, 1, tiny_recipe, tmp_path / "cache")


def test_a_cache_of_other_settings_is_refused_and_left_alone(
    cache: Cache, tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in cache.folder.iterdir()}
    other = msgspec.structs.replace(
        tiny_recipe, window=msgspec.structs.replace(tiny_recipe.window, length_volumes=3)
    )
    with pytest.raises(TrainError, match="was prepared with other window"):
        prepare(tiny_nsd, 1, other, cache.folder)
    with pytest.raises(TrainError, match="was prepared with other train_runs"):
        prepare(tiny_nsd, 1, tiny_recipe, cache.folder, seed=2)
    assert before == {path.name: path.stat().st_mtime_ns for path in cache.folder.iterdir()}
    (tmp_path / "mine.txt").write_text("not a cache")
    with pytest.raises(TrainError, match="expected .* to be empty or to hold a cache"):
        prepare(tiny_nsd, 1, tiny_recipe, tmp_path)


def test_a_data_set_in_the_place_of_another_is_noticed(
    cache: Cache, tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    root = tmp_path / "nsd"
    shutil.copytree(tiny_nsd, root)
    assert prepare(root, 1, tiny_recipe, cache.folder).data == cache.data, "a copy is the same data"
    layout = Layout(root)
    shutil.copy(layout.timeseries(1, 1, 3), layout.timeseries(1, 1, 2))
    with pytest.raises(TrainError, match="was prepared with other data than"):
        prepare(root, 1, tiny_recipe, cache.folder)


def test_the_first_sessions_have_a_prior_of_their_own(
    tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    root, folder, replace = tmp_path / "nsd", tmp_path / "cache", msgspec.structs.replace
    # With more drifts to fit than by default, windows depend on the prior for longer.
    recipe = replace(tiny_recipe, preprocessing=replace(tiny_recipe.preprocessing, high_pass_hz=0.03))
    shutil.copytree(tiny_nsd, root)
    layout = Layout(root)
    for run in (1, 2, 3):  # a second session, of recordings with another mean
        for path in (layout.timeseries, layout.design):
            shutil.copy(path(1, 1, run), path(1, 2, run))
    every = prepare(root, 1, recipe, folder)
    first = prepare(root, 1, recipe, folder, n_sessions=1)
    chosen = [index for index, key in enumerate(first.runs) if key in first.train_runs and key.session == 1]
    assert 0 < len(chosen) < len(first.train_runs)
    means = [recorded(root, first, index).mean(axis=0) for index in chosen]
    np.testing.assert_allclose(first.priors.voxels.mean, np.mean(means, axis=0), rtol=1e-6)
    assert not np.array_equal(first.priors.voxels.mean, every.priors.voxels.mean)
    assert not np.array_equal(first.form("causal"), every.form("causal"))
    np.testing.assert_array_equal(first.form("whole_run"), every.form("whole_run"))
    again = prepare(root, 1, recipe, folder, n_sessions=2)
    np.testing.assert_array_equal(again.priors.voxels.mean, every.priors.voxels.mean)
    with pytest.raises(TrainError, match="expected presentations of subject 1 to train on, found none"):
        prepare(root, 1, recipe, folder, n_sessions=0)


def test_preparations_of_one_folder_wait_for_one_another(
    cache: Cache, tiny_nsd: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "train", "prepare", "--nsd", str(tiny_nsd), "--subject", "1"]
    command += ["--out", str(tmp_path), "--workers", "1"]
    with another_process_in(tmp_path / "sub-01"):
        both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        for process in both:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("waiting for another process that is writing in")
        assert [path.name for path in (tmp_path / "sub-01").iterdir()] == [".lock"]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("causal: 100%" in text for text in said) == 1, "both have made it, or none"
    for name in ("rows", "whole_run", "causal"):
        made = tmp_path / "sub-01" / f"{name}.npy"
        assert made.read_bytes() == (cache.folder / made.name).read_bytes()


def test_what_a_killed_preparation_leaves_half_written_is_not_believed(
    cache: Cache, tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / ".partial-cache.json").write_text('{"subj')
    with monkeypatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise OSError("no space left on device")

        patch.setattr("numpy.lib.format.open_memmap", full)
        with pytest.raises(OSError, match="no space"):
            prepare(tiny_nsd, 1, tiny_recipe, folder)
    prepare(tiny_nsd, 1, tiny_recipe, folder)
    (folder / "causal.npy").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("train.data.cache_arrays.over_items", full)  # killed once the new array is there
        with pytest.raises(OSError, match="no space"):
            prepare(tiny_nsd, 1, tiny_recipe, folder)
    again = prepare(tiny_nsd, 1, tiny_recipe, folder)
    np.testing.assert_array_equal(again.form("causal"), cache.form("causal"))


def test_windows_are_the_volumes_after_their_onset(cache: Cache, tiny_recipe: Recipe) -> None:
    trials = np.arange(40, 50)
    data = WindowData([examples(cache, trials, tiny_recipe.window, "whole_run")], 6)
    windows, images, subjects = data.batch(np.array([3, 7]))
    assert windows.shape == (2, 100, 6)
    assert not subjects.any()
    for window, image, place in zip(windows, images, (43, 47), strict=True):
        item = cache.trials[place]
        first = item.trial.onset_volume + 3
        expected = cache.form("whole_run")[cache.runs.index(item.run), first : first + 6].T
        np.testing.assert_array_equal(window.numpy(), expected)
        assert image == item.trial.image


def test_forms_and_subjects_lie_one_after_the_other_and_smaller_regions_end_in_zeros(
    cache: Cache, tiny_recipe: Recipe
) -> None:
    trials = np.arange(20)
    whole = examples(cache, trials, tiny_recipe.window, "whole_run", subject=1)
    causal = examples(cache, trials, tiny_recipe.window, "causal")
    small = type(causal)(rows=causal.rows[:, :60], starts=causal.starts, images=causal.images, subject=2)
    data = WindowData([whole, causal, small], 6)
    assert len(data) == 60
    loader = DataLoader(data, batch_size=60, num_workers=2)
    windows, images, subjects = next(iter(loader))
    assert subjects.tolist() == [1] * 20 + [0] * 20 + [2] * 20
    assert torch.equal(images[:20], images[20:40])
    assert torch.equal(windows[25], torch.from_numpy(cache.form("causal")[5].T.copy()))
    assert torch.equal(windows[45, :60], windows[25, :60])
    assert not windows[40:, 60:].any()


def test_a_window_beyond_its_run_is_refused(cache: Cache, tiny_recipe: Recipe) -> None:
    late = msgspec.structs.replace(tiny_recipe.window, offset_volumes=200)
    with pytest.raises(TrainError, match="reaches beyond the run"):
        examples(cache, np.arange(5), late, "whole_run")


def test_a_cache_holds_what_its_recipes_train_on(
    cache: Cache, tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    replace = msgspec.structs.replace
    whole = replace(tiny_recipe, preprocessing=replace(tiny_recipe.preprocessing, train_on=("whole_run",)))
    short = replace(whole, window=replace(whole.window, length_volumes=2))
    prepare(tiny_nsd, 1, whole, tmp_path / "cache")
    assert not (tmp_path / "cache" / "causal.npy").exists()
    prepare(tiny_nsd, 1, short, tmp_path / "cache")  # whole runs serve every window
    grown = prepare(tiny_nsd, 1, tiny_recipe, tmp_path / "cache")
    np.testing.assert_array_equal(grown.form("causal"), cache.form("causal"))
    shorter = replace(tiny_recipe, window=short.window)
    with pytest.raises(TrainError, match="other window"):
        prepare(tiny_nsd, 1, shorter, tmp_path / "cache")


def test_betas_are_z_scored_over_their_session(
    tiny_nsd_with_betas: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    replace = msgspec.structs.replace
    recipe = replace(
        tiny_recipe,
        preprocessing=replace(tiny_recipe.preprocessing, train_on=("betas",)),
        window=replace(tiny_recipe.window, offset_volumes=0, length_volumes=1),
    )
    cache = prepare(tiny_nsd_with_betas, 1, recipe, tmp_path / "cache")
    layout = Layout(tiny_nsd_with_betas)
    betas = read_betas(layout, 1, 1, read_roi(layout, 1)).astype(np.float64)
    expected = (betas - betas.mean(axis=0)) / betas.std(axis=0, ddof=1)
    np.testing.assert_allclose(cache.form("betas")[:, 0], expected, rtol=FP16, atol=FP16)
    assert not (tmp_path / "cache" / "rows.npy").exists()
    (missing,) = examples(cache, np.array([3]), recipe.window, "betas").starts
    assert missing == 3
    root = tmp_path / "nsd"
    shutil.copytree(tiny_nsd_with_betas, root)
    shutil.copy(Layout(root).roi(1), Layout(root).betas(1, 1))
    with pytest.raises(TrainError, match="was prepared with other betas"):
        prepare(root, 1, recipe, cache.folder)


def test_betas_have_no_window(tiny_recipe: Recipe) -> None:
    replace = msgspec.structs.replace
    with pytest.raises(ValueError, match="betas have no time"):
        replace(tiny_recipe, preprocessing=replace(tiny_recipe.preprocessing, train_on=("betas",)))
