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

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nsd import Layout, RunKey, read_roi, run_trials, runs, shared_images, time_resolved_split
from nsd.splits import RunTrial
from realtime.bundle.statistics import VoxelStatistics
from train.data.cache_arrays import Making, of_sessions, open_array, prior_path
from train.data.cache_settings import claim, made_from, made_from_besides
from train.errors import TrainError
from train.recipe import Form, Recipe
from train.store.atomic import alone_in
from train.store.fingerprints import subject_identity


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
    """Identity of the recordings (:mod:`train.store.fingerprints`)."""
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
    def prior(self) -> VoxelStatistics:
        """Mean and SD of the runs that train."""
        path = prior_path(self.folder, self.n_sessions)
        return VoxelStatistics.read(path, self.rows.shape[-1])

    @property
    def has_prior(self) -> bool:
        """Whether there is a prior: betas alone have none."""
        return prior_path(self.folder, self.n_sessions).exists()

    @cached_property
    def rows(self) -> NDArray[np.float32]:
        """The region as recorded, ``[runs, 225, V]``."""
        return open_array(self.folder, "rows")

    def form(self, form: Form) -> NDArray[np.float16]:
        """``whole_run`` ``[runs, 225, V]``, ``causal`` ``[trials, T, V]`` or ``betas`` ``[trials, 1, V]``."""
        return open_array(self.folder, of_sessions(form, self.n_sessions) if form == "causal" else form)


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
    making = Making(
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
