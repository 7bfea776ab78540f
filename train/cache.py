"""Prepared recordings of a subject: every run read once, masked, detrended, z-scored, memory-mapped.

    CACHE/cache.json       what it is made from; a cache made from something else is refused
    CACHE/rows.npy         float32 [runs, 225, V]   the region as recorded
    CACHE/prior.npz        float32 [V] twice        mean and SD of the runs that train
    CACHE/whole_run.npy    float16 [runs, 225, V]   z-scores, detrended over the whole run
    CACHE/causal.npy       float16 [trials, T, V]   each presentation's window as the runtime would feed it
    CACHE/done.npy         uint8   [3, runs]        which runs are finished in rows, whole_run, causal

Runs are worked on in processes of their own, each of which holds one run; an interrupted preparation goes on
with the runs that are not finished. Nothing here needs torch.

Legend: V voxels of the region, T volumes of a window.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nsd import N_DESIGN_ROWS, TR_S, Layout, Run, RunKey, read_roi, run_trials, runs, time_resolved_split
from nsd.splits import RunTrial
from realtime import bundle
from realtime.preprocess import causal_windows, cosine_basis, z_scored
from train.errors import TrainError
from train.recipe import Preprocessing, Recipe

STAGES = ("rows", "whole_run", "causal")
_JSON, _DONE, _PRIOR = "cache.json", "done.npy", "prior.npz"


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Per-voxel mean, and SD over time after drift removal, of training runs; float32 ``[V]``."""

    mean: NDArray[np.float32]
    sd: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write as ``.npz`` with arrays ``mean`` and ``sd``."""
        np.savez(path, mean=self.mean, sd=self.sd)

    @staticmethod
    def load(path: Path) -> Prior:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return Prior(mean=arrays["mean"], sd=arrays["sd"])


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A finished cache, opened for reading."""

    folder: Path
    runs: list[RunKey]
    train_runs: list[RunKey]
    trials: list[RunTrial]
    """All presentations of all runs, in order; row i of ``causal`` is the window of the i-th."""

    @property
    def test_runs(self) -> list[RunKey]:
        """The runs that are held out."""
        trains = set(self.train_runs)
        return [key for key in self.runs if key not in trains]

    @cached_property
    def prior(self) -> Prior:
        """Mean and SD of the runs that train."""
        return Prior.load(self.folder / _PRIOR)

    @cached_property
    def whole_run(self) -> NDArray[np.float16]:
        """Z-scores ``[runs, 225, V]``."""
        return _open(self.folder, "whole_run")

    @cached_property
    def causal(self) -> NDArray[np.float16]:
        """Windows ``[trials, T, V]``."""
        return _open(self.folder, "causal")


def prepare(
    root: Path, subject: int, recipe: Recipe, folder: Path, *, seed: int = 1, workers: int | None = None
) -> Cache:
    """Bring a subject's cache to its end, from wherever it is, and open it.

    :param seed: of the split; the prior is measured on the runs that train
    :raises TrainError: when ``folder`` was made from other runs or settings
    :raises NsdError: when a file of the data set is not what it should be
    """
    layout = Layout(root)
    keys = runs(layout, subject)
    train_keys, _ = time_resolved_split(keys, seed)
    trials = run_trials(layout, keys)
    n_voxels = read_roi(layout, subject).n_voxels
    _claim(folder, _made_from(subject, keys, train_keys, n_voxels, recipe))
    shapes = {
        "rows": (len(keys), N_DESIGN_ROWS, n_voxels),
        "whole_run": (len(keys), N_DESIGN_ROWS, n_voxels),
        "causal": (len(trials), recipe.window.length_volumes, n_voxels),
    }
    _allocate(folder, shapes)
    work = partial(_over_runs, folder, keys, workers or len(os.sched_getaffinity(0)))
    work("rows", partial(_read_run, layout, folder))
    if not (folder / _PRIOR).exists():
        rows = _open(folder, "rows")
        trains = tqdm([keys.index(key) for key in train_keys], desc="prior", unit="run")
        prior = measure_prior((rows[index] for index in trains), recipe.preprocessing.high_pass_hz)
        prior.save(folder / _PRIOR)
    work("whole_run", partial(_z_score_run, folder, recipe.preprocessing))
    starts = np.searchsorted([keys.index(item.run) for item in trials], range(len(keys) + 1))
    places = {key: slice(*starts[index : index + 2]) for index, key in enumerate(keys)}
    work("causal", partial(_stream_run, folder, recipe, trials, places))
    return Cache(folder=folder, runs=keys, train_runs=train_keys, trials=trials)


def measure_prior(runs_of_rows: Iterable[NDArray[np.float32]], high_pass_hz: float) -> Prior:
    """Mean over runs of each voxel's mean, and root mean square over runs of its SD after drift removal.

    :param runs_of_rows: the region in each run, ``[n, V]``
    """
    means: Any = 0.0
    variances: Any = 0.0
    n_runs = 0
    for rows in runs_of_rows:
        basis, _ = np.linalg.qr(cosine_basis(len(rows), TR_S, high_pass_hz))
        series = rows.astype(np.float64)
        means = means + series.mean(axis=0)
        series -= basis @ (basis.T @ series)
        variances = variances + np.square(series).sum(axis=0) / (len(series) - 1)
        n_runs += 1
    mean, sd = means / n_runs, np.sqrt(variances / n_runs)
    return Prior(mean=mean.astype(np.float32), sd=sd.astype(np.float32))


def streaming_settings(preprocessing: Preprocessing) -> bundle.Preprocessing:
    """The runtime's preprocessing settings, from the recipe's."""
    return bundle.Preprocessing(
        high_pass_hz=preprocessing.high_pass_hz,
        warmup_volumes=preprocessing.warmup_volumes,
        prior_volumes=preprocessing.prior_volumes,
    )


def drift_basis(n_volumes: int, preprocessing: Preprocessing) -> NDArray[np.float64]:
    """What is removed from a whole run, ``[n, K]``: slow cosines, or as in the released code a line."""
    if preprocessing.drift == "linear":
        return np.stack([np.ones(n_volumes), np.linspace(-1, 1, n_volumes)], axis=1)
    return cosine_basis(n_volumes, TR_S, preprocessing.high_pass_hz)


def _read_run(layout: Layout, folder: Path, index: int, key: RunKey) -> None:
    rows = Run(layout, *key).roi_series(read_roi(layout, key.subject))
    _write(folder, "rows", index, rows)


def _z_score_run(folder: Path, preprocessing: Preprocessing, index: int, key: RunKey) -> None:
    rows = _open(folder, "rows")[index]
    _write(folder, "whole_run", index, z_scored(rows, drift_basis(len(rows), preprocessing)))


def _stream_run(
    folder: Path,
    recipe: Recipe,
    trials: Sequence[RunTrial],
    places: dict[RunKey, slice],
    index: int,
    key: RunKey,
) -> None:
    window = recipe.window
    prior = Prior.load(folder / _PRIOR)
    onsets = [item.trial.onset_volume for item in trials[places[key]]]
    windows = causal_windows(
        _open(folder, "rows")[index],
        TR_S,
        streaming_settings(recipe.preprocessing),
        prior.mean,
        prior.sd,
        window.length_volumes,
        [onset + window.offset_volumes + window.length_volumes - 1 for onset in onsets],
    )
    _write(folder, "causal", places[key], windows.transpose(0, 2, 1))


def _over_runs(
    folder: Path, keys: Sequence[RunKey], workers: int, stage: str, work: Callable[[int, RunKey], None]
) -> None:
    """Do ``work`` for every run that the stage has not finished, in processes; note each as it ends."""
    done = np.load(folder / _DONE, mmap_mode="r+")
    row = done[STAGES.index(stage)]
    left = np.flatnonzero(row == 0).tolist()
    if not left:
        return
    # Not forked: the caller may hold threads and devices that a fork would copy half.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        futures = {pool.submit(work, index, keys[index]): index for index in left}
        bar = tqdm(total=len(keys), initial=len(keys) - len(left), desc=stage, unit="run")
        try:
            for future in as_completed(futures):
                future.result()
                row[futures[future]] = 1
                done.flush()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
            bar.close()


def _end_with_parent() -> None:
    """In a worker: a parent that was killed leaves nobody behind who writes to the cache."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _made_from(
    subject: int, keys: list[RunKey], train_keys: list[RunKey], n_voxels: int, recipe: Recipe
) -> dict[str, Any]:
    made_from = {
        "subject": subject,
        "n_voxels": n_voxels,
        "runs": keys,
        "train_runs": train_keys,
        "window": recipe.window,
        "preprocessing": recipe.preprocessing,
    }
    as_read_back: dict[str, Any] = json.loads(msgspec.json.encode(made_from))
    return as_read_back


def _claim(folder: Path, made_from: dict[str, Any]) -> None:
    """Write what a new cache is made from; refuse one that is made from something else."""
    path = folder / _JSON
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any(folder.iterdir()):
            raise TrainError(f"expected an empty folder or a cache in {folder}, found other files")
        path.write_text(json.dumps(made_from, indent=1))
        return
    theirs = json.loads(path.read_text())
    different = [name for name in made_from if theirs.get(name) != made_from[name]]
    if different:
        raise TrainError(
            f"{folder} holds recordings with other {', '.join(different)} than this recipe and data set; "
            "name another folder, or remove it to make it anew"
        )


def _allocate(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for stage, shape in shapes.items():
        path = folder / f"{stage}.npy"
        if not path.exists():
            dtype = np.float32 if stage == "rows" else np.float16
            np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
    if not (folder / _DONE).exists():
        done = np.zeros((len(STAGES), shapes["rows"][0]), dtype=np.uint8)
        np.save(folder / _DONE, done, allow_pickle=False)


def _open(folder: Path, stage: str) -> NDArray[Any]:
    # As a plain array: slicing numpy's memmap class costs more than reading a window through it.
    return np.asarray(np.load(folder / f"{stage}.npy", mmap_mode="r", allow_pickle=False))


def _write(folder: Path, stage: str, where: int | slice, values: NDArray[Any]) -> None:
    array = np.load(folder / f"{stage}.npy", mmap_mode="r+", allow_pickle=False)
    array[where] = values
    array.flush()
