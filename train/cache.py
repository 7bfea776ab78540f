"""Prepared recordings of a subject: every run read once, masked, detrended, z-scored, memory-mapped.

    CACHE/cache.json       what it is made from; a cache made from something else is refused
    CACHE/rows.npy         float32 [runs, 225, V]   the region as recorded
    CACHE/prior.npz        float32 [V] twice        mean and SD of the runs that train
    CACHE/whole_run.npy    float16 [runs, 225, V]   z-scores, detrended over the whole run
    CACHE/causal.npy       float16 [trials, T, V]   each presentation's window as the runtime would feed it
    CACHE/prior-first-N.npz, causal-first-N.npy     the same for those who train on the first N sessions
    CACHE/betas.npy        float16 [trials, 1, V]   each presentation's beta, z-scored over its session
    CACHE/….done.npy       uint8   [items]          which runs (or sessions) of an array are finished

Of whole runs, causal windows and betas, those exist that a recipe trains on. Runs are worked on in processes
of their own, each of which holds one run; an interrupted preparation goes on with the runs that are not
finished, and who prepares a folder while another does waits for it. Nothing here needs torch.

Legend: V voxels of the region, T volumes of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nsd import (
    N_DESIGN_ROWS,
    TR_S,
    BadFile,
    Layout,
    Run,
    RunKey,
    read_betas,
    read_roi,
    run_trials,
    runs,
    shared_images,
    time_resolved_split,
)
from nsd.splits import RunTrial
from realtime import bundle
from realtime.preprocess import causal_windows, cosine_basis, z_scored
from train.cachesettings import claim, made_from, made_from_besides
from train.errors import TrainError
from train.identity import subject_identity
from train.keeping import alone_in, whole
from train.prior import Prior, measure_prior
from train.recipe import Form, Preprocessing, Recipe
from train.workers import over_items


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A finished cache, opened for reading."""

    folder: Path
    runs: list[RunKey]
    train_runs: list[RunKey]
    """Runs of which at least some presentations train: all of them in the standard split."""
    trials: list[RunTrial]
    """All presentations of all runs, in order; row i of ``causal`` and ``betas`` belongs to the i-th."""
    is_test: NDArray[np.bool_]
    """``[trials]``: which presentations are held out."""
    data: str
    """Identity of the recordings (:mod:`train.identity`)."""
    n_sessions: int | None = None
    """Prior and causal windows know the first so many sessions alone; all of them where none."""

    @property
    def test_runs(self) -> list[RunKey]:
        """The runs that are held out whole: none in the standard split."""
        trains = set(self.train_runs)
        return [key for key in self.runs if key not in trains]

    @cached_property
    def images(self) -> NDArray[np.int64]:
        """0-based image of each presentation, ``[trials]``."""
        return np.array([item.trial.image for item in self.trials], dtype=np.int64)

    @cached_property
    def prior(self) -> Prior:
        """Mean and SD of the runs that train."""
        return Prior.load(_prior_path(self.folder, self.n_sessions))

    @property
    def has_prior(self) -> bool:
        """Whether there is a prior: betas alone have none."""
        return _prior_path(self.folder, self.n_sessions).exists()

    @cached_property
    def rows(self) -> NDArray[np.float32]:
        """The region as recorded, ``[runs, 225, V]``."""
        return _open(self.folder, "rows")

    def form(self, form: Form) -> NDArray[np.float16]:
        """``whole_run`` ``[runs, 225, V]``, ``causal`` ``[trials, T, V]`` or ``betas`` ``[trials, 1, V]``."""
        return _open(self.folder, _of_sessions(form, self.n_sessions) if form == "causal" else form)


def subject_cache(root: Path, subject: int) -> Path:
    """A subject's folder in a folder of caches."""
    return root / f"sub-{subject:02d}"


def prepare(
    root: Path,
    subject: int,
    recipe: Recipe,
    folder: Path,
    *,
    seed: int = 1,
    n_sessions: int | None = None,
    workers: int | None = None,
) -> Cache:
    """Bring a subject's cache to its end, from wherever it is, and open it.

    :param seed: of the split; the prior is measured on the runs that train
    :param n_sessions: the prior is measured on those of the first so many sessions
    :raises TrainError: when ``folder`` was made from other data or settings, or no run trains
    :raises NsdError: when a file of the data set is not what it should be
    """
    layout = Layout(root)
    keys = runs(layout, subject)
    trials = run_trials(layout, keys)
    train_keys, is_test = _split(layout, recipe, keys, trials, seed)
    prior_keys = [key for key in train_keys if n_sessions is None or key.session <= n_sessions]
    if not prior_keys:
        raise TrainError(
            f"expected presentations of subject {subject} to train on, found none in the first {n_sessions} "
            "session(s)"
        )
    making = _Making(
        layout=layout,
        folder=folder,
        recipe=recipe,
        keys=keys,
        prior_keys=prior_keys,
        trials=trials,
        n_voxels=read_roi(layout, subject).n_voxels,
        n_sessions=None if prior_keys == train_keys else n_sessions,
        workers=workers,
    )
    data = subject_identity(layout, trials)
    with alone_in(folder, wait=True):
        settings = made_from(keys, train_keys, making.n_voxels, data, recipe)
        claim(folder, settings, made_from_besides(layout, trials, recipe))
        making.all()
    return Cache(
        folder=folder,
        runs=keys,
        train_runs=train_keys,
        trials=trials,
        is_test=is_test,
        data=data,
        n_sessions=making.n_sessions,
    )


@dataclass(frozen=True, kw_only=True)
class _Making:
    """The arrays of a cache, each made of what is already there."""

    layout: Layout
    folder: Path
    recipe: Recipe
    keys: list[RunKey]
    prior_keys: list[RunKey]
    trials: list[RunTrial]
    n_voxels: int
    n_sessions: int | None
    workers: int | None

    def all(self) -> None:
        """What the recipe trains on, and what that is made of."""
        forms = self.recipe.preprocessing.train_on
        if set(forms) & {"whole_run", "causal"}:
            self.rows()
            self.prior()
            self.whole_run()  # what evaluation decodes, whichever of the two a recipe trains on
        if "causal" in forms:
            self.causal()
        if "betas" in forms:
            self.betas()

    def rows(self) -> None:
        shape = (len(self.keys), N_DESIGN_ROWS, self.n_voxels)
        self._make("rows", shape, partial(_read_run, self.layout, self.folder), self.keys, np.float32)

    def prior(self) -> None:
        path = _prior_path(self.folder, self.n_sessions)
        if path.exists():
            return
        rows = _open(self.folder, "rows")
        trains = tqdm([self.keys.index(key) for key in self.prior_keys], desc="prior", unit="run")
        prior = measure_prior((rows[index] for index in trains), self.recipe.preprocessing.high_pass_hz)
        with whole(path) as unfinished:
            prior.save(unfinished)

    def whole_run(self) -> None:
        shape = (len(self.keys), N_DESIGN_ROWS, self.n_voxels)
        work = partial(_z_score_run, self.folder, self.recipe.preprocessing)
        self._make("whole_run", shape, work, self.keys)

    def causal(self) -> None:
        window, trials = self.recipe.window, self.trials
        ends = [
            item.trial.onset_volume + window.offset_volumes + window.length_volumes - 1 for item in trials
        ]
        places = _places([item.run for item in trials], self.keys)
        work = partial(_stream_run, self.folder, self.recipe, self.n_sessions, ends, places)
        shape = (len(trials), window.length_volumes, self.n_voxels)
        self._make(_of_sessions("causal", self.n_sessions), shape, work, self.keys)

    def betas(self) -> None:
        sessions = sorted({key.session for key in self.keys})
        places = _places([item.run.session for item in self.trials], sessions)
        work = partial(_read_session, self.layout, self.folder, self.keys[0].subject, places)
        self._make("betas", (len(self.trials), 1, self.n_voxels), work, sessions, unit="session")

    def _make(
        self,
        name: str,
        shape: tuple[int, ...],
        work: Callable[[int, Any], None],
        items: Sequence[Any],
        dtype: Any = np.float16,
        unit: str = "run",
    ) -> None:
        path, done = self.folder / f"{name}.npy", self.folder / f"{name}.done.npy"
        # In this order: an array without notes is made anew, notes without their array would be believed.
        if not path.exists() or not done.exists():
            with whole(done) as unfinished:
                np.save(unfinished, np.zeros(len(items), dtype=np.uint8), allow_pickle=False)
        if not path.exists():
            with whole(path) as empty:
                np.lib.format.open_memmap(empty, mode="w+", dtype=dtype, shape=shape).flush()
        over_items(done, items, work, name=name, unit=unit, workers=self.workers)


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


def streamed(
    rows: NDArray[np.float32], recipe: Recipe, prior: Prior, ends: Sequence[int], n_volumes: int
) -> NDArray[np.float32]:
    """Windows ``[n, V, T]`` of one run ``[225, V]`` that end with volumes ``ends``, as the runtime sees.

    :param n_volumes: T
    """
    settings = streaming_settings(recipe.preprocessing)
    return causal_windows(rows, TR_S, settings, prior.mean, prior.sd, n_volumes, list(ends))


def _read_run(layout: Layout, folder: Path, index: int, key: RunKey) -> None:
    rows = Run(layout, *key).roi_series(read_roi(layout, key.subject))
    _write(folder, "rows", index, rows)


def _z_score_run(folder: Path, preprocessing: Preprocessing, index: int, key: RunKey) -> None:
    rows = _open(folder, "rows")[index]
    _write(folder, "whole_run", index, z_scored(rows, drift_basis(len(rows), preprocessing)))


def _stream_run(
    folder: Path,
    recipe: Recipe,
    n_sessions: int | None,
    ends: list[int],
    places: list[slice],
    index: int,
    key: RunKey,
) -> None:
    rows, prior = _open(folder, "rows")[index], Prior.load(_prior_path(folder, n_sessions))
    windows = streamed(rows, recipe, prior, ends[places[index]], recipe.window.length_volumes)
    _write(folder, _of_sessions("causal", n_sessions), places[index], windows.transpose(0, 2, 1))


def _read_session(
    layout: Layout, folder: Path, subject: int, places: list[slice], index: int, session: int
) -> None:
    betas = read_betas(layout, subject, session, read_roi(layout, subject))
    n_trials = places[index].stop - places[index].start
    if len(betas) != n_trials:
        expected = f"as many betas as presentations in the session's runs on disk, {n_trials}"
        raise BadFile(layout.betas(subject, session), expected, str(len(betas)))
    deviation = betas.std(axis=0, ddof=1)
    z_scores = (betas - betas.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    _write(folder, "betas", places[index], z_scores[:, None])


def _places(owners: Sequence[Any], items: Sequence[Any]) -> list[slice]:
    """Where each item's presentations lie among all, which are in order of their items."""
    bounds = np.searchsorted([items.index(owner) for owner in owners], range(len(items) + 1))
    return [slice(*bounds[index : index + 2].tolist()) for index in range(len(items))]


def _split(
    layout: Layout, recipe: Recipe, keys: list[RunKey], trials: list[RunTrial], seed: int
) -> tuple[list[RunKey], NDArray[np.bool_]]:
    """Runs with presentations that train, and which presentations ``[trials]`` are held out."""
    if recipe.split == "standard":
        shared = shared_images(layout)
        return keys, np.isin([item.trial.image for item in trials], shared)
    train_keys, test_keys = time_resolved_split(keys, seed)
    held_out = set(test_keys)
    return train_keys, np.array([item.run in held_out for item in trials])


def _of_sessions(name: str, n_sessions: int | None) -> str:
    return name if n_sessions is None else f"{name}-first-{n_sessions}"


def _prior_path(folder: Path, n_sessions: int | None) -> Path:
    return folder / f"{_of_sessions('prior', n_sessions)}.npz"


def _open(folder: Path, name: str) -> NDArray[Any]:
    # As a plain array: slicing numpy's memmap class costs more than reading a window through it.
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))


def _write(folder: Path, name: str, where: int | slice, values: NDArray[Any]) -> None:
    array = np.load(folder / f"{name}.npy", mmap_mode="r+", allow_pickle=False)
    array[where] = values
    array.flush()
