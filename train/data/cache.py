"""The cache of a subject's recordings: every run is read once, masked, detrended and z-scored.

    CACHE/cache.json       what the cache was made from; a cache made from something else is refused
    CACHE/rows.npy         float32 [runs, 225, V]   ROI as recorded; NaN in repaired volumes (nsd.repairs)
    CACHE/prior.npz        float32 [V] twice        mean and SD of the training runs
    CACHE/drift.json       JSON                     size of their drifts, where the recipe asks for it
    CACHE/whole_run.npy    float16 [runs, 225, V]   z-scores, detrended over the whole run
    CACHE/causal.npy       float16 [trials, T, V]   window of each presentation, as the runtime computes it
    CACHE/prior-first-N.npz, drift-first-N.json, causal-first-N.npy
                                                     the same for training on the first N sessions
    CACHE/betas.npy        float16 [trials, 1, V]   beta of each presentation, z-scored over its session
    CACHE/….done.npy       uint8   [items]          which runs (or sessions) of an array are finished

The arrays are memory-mapped, and only those exist that a recipe trains on. Worker processes hold one run
each. An interrupted preparation continues with the unfinished runs; a second process that prepares the same
folder waits for the first. Does not import torch.

Legend: V voxels of the ROI, T volumes of a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nsd import (
    TR_S,
    Layout,
    RunKey,
    read_roi,
    repaired_volumes,
    run_trials,
    runs,
    shared_images,
    time_resolved_split,
)
from nsd.splits import RunTrial
from train.data.cache_arrays import Making, of_sessions, open_array, prior_path, read_priors
from train.data.cache_settings import claim, optional_settings, required_settings
from train.data.prior import Priors
from train.errors import TrainError
from train.recipe import Form, Recipe
from train.store.fingerprints import subject_identity
from train.store.lock import alone_in


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A finished cache, opened for reading."""

    folder: Path
    root: Path
    """Root of the data set that it was made from."""
    runs: list[RunKey]
    train_runs: list[RunKey]
    """Runs with training presentations: all runs in the standard split."""
    trials: list[RunTrial]
    """All presentations of all runs in order; row i of ``causal`` and ``betas`` belongs to the i-th."""
    is_test: NDArray[np.bool_]
    """Whether a presentation is held out, ``[trials]``."""
    withheld: NDArray[np.int64]
    """Images that no presentation of is trained on, whether it tests or not, sorted."""
    data: str
    """Fingerprint of the recordings (:mod:`train.store.fingerprints`)."""
    n_sessions: int | None = None
    """Prior and causal windows use only this many first sessions; None for all."""
    repaired: Mapping[RunKey, range] = field(default_factory=dict)
    """Volumes that NSD's authors filled in, by run: no window that is used holds them."""

    @property
    def test_runs(self) -> list[RunKey]:
        """The held-out runs; there are none in the standard split."""
        trains = set(self.train_runs)
        return [key for key in self.runs if key not in trains]

    @cached_property
    def images(self) -> NDArray[np.int64]:
        """The 0-based image of each presentation, ``[trials]``."""
        return np.array([item.trial.image for item in self.trials], dtype=np.int64)

    @cached_property
    def priors(self) -> Priors:
        """What the training runs say about other runs."""
        return read_priors(self.folder, self.n_sessions, self.rows.shape[-1])

    @cached_property
    def shared(self) -> NDArray[np.int64]:
        """The images that every subject is shown, sorted; none where no design says so."""
        layout = Layout(self.root)
        return np.sort(shared_images(layout)) if layout.expdesign().is_file() else np.empty(0, np.int64)

    @property
    def has_priors(self) -> bool:
        """Whether there are priors: a cache of betas alone has none."""
        return prior_path(self.folder, self.n_sessions).exists()

    @cached_property
    def rows(self) -> NDArray[np.float32]:
        """The ROI as recorded, ``[runs, 225, V]``."""
        return open_array(self.folder, "rows")

    def form(self, form: Form) -> NDArray[np.float16]:
        """``whole_run`` ``[runs, 225, V]``, ``causal`` ``[trials, T, V]`` or ``betas`` ``[trials, 1, V]``."""
        return open_array(self.folder, of_sessions(form, self.n_sessions) if form == "causal" else form)


def subject_cache(root: Path, subject: int) -> Path:
    """The folder of a subject's cache in a folder of caches."""
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
    """Make a subject's cache, or finish it if it is incomplete, and open it.

    :param seed: seed of the split; the prior is measured on the training runs
    :param n_sessions: measure the prior on this many first sessions only
    :raises TrainError: ``folder`` was made from other data or settings, or there are no training runs
    :raises NsdError: a file of the data set is missing or damaged
    """
    layout = Layout(root)
    keys = runs(layout, subject)
    trials = run_trials(layout, keys)
    repaired = left_out(layout, keys, recipe)
    train_keys, is_test = _split(layout, recipe, keys, trials, seed)
    prior_keys = [key for key in train_keys if n_sessions is None or key.session <= n_sessions]
    if not prior_keys:
        raise TrainError(
            f"expected presentations of subject {subject} to train on, found none in the first {n_sessions} "
            "session(s); use more sessions, or another split in the recipe"
        )
    making = Making(
        layout=layout,
        folder=folder,
        recipe=recipe,
        keys=keys,
        prior_keys=prior_keys,
        trials=trials,
        repaired=repaired,
        n_voxels=read_roi(layout, subject).n_voxels,
        n_sessions=None if prior_keys == train_keys else n_sessions,
        workers=workers,
    )
    data = subject_identity(layout, trials)
    with alone_in(folder, wait=True):
        settings = required_settings(keys, train_keys, making.n_voxels, data, repaired, recipe)
        claim(folder, settings, optional_settings(layout, trials, recipe))
        making.all()
    return Cache(
        folder=folder,
        root=root,
        runs=keys,
        train_runs=train_keys,
        trials=trials,
        is_test=is_test,
        withheld=_withheld(layout, recipe),
        data=data,
        n_sessions=making.n_sessions,
        repaired=repaired,
    )


def left_out(layout: Layout, keys: Iterable[RunKey], recipe: Recipe) -> dict[RunKey, range]:
    """The volumes that NSD's authors filled in and the recipe leaves out, of the runs that have any.

    Recordings at another TR are not NSD's, only in its layout.
    """
    if recipe.preprocessing.repaired_volumes == "use" or recipe.preprocessing.tr_s != TR_S:
        return {}
    return {key: volumes for key in keys if (volumes := repaired_volumes(layout, key))}


def _withheld(layout: Layout, recipe: Recipe) -> NDArray[np.int64]:
    """The images that the split keeps out of the training set, beside those that are tested."""
    return np.sort(shared_images(layout)) if recipe.split == "runs-and-shared" else np.empty(0, np.int64)


def _split(
    layout: Layout, recipe: Recipe, keys: list[RunKey], trials: list[RunTrial], seed: int
) -> tuple[list[RunKey], NDArray[np.bool_]]:
    """The runs with training presentations, and whether each presentation is held out, ``[trials]``."""
    if recipe.split == "standard":
        shared = shared_images(layout)
        return keys, np.isin([item.trial.image for item in trials], shared)
    train_keys, test_keys = time_resolved_split(keys, seed)
    held_out = set(test_keys)
    return train_keys, np.array([item.run in held_out for item in trials])
