"""Computes the arrays of a cache, run by run: see :mod:`train.data.cache`.

Legend: V voxels of the ROI, T volumes of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nsd import N_DESIGN_ROWS, BadFile, Layout, Run, RunKey, betas_path, read_betas, read_roi
from nsd.splits import RunTrial
from realtime.atomic import whole, write_whole
from realtime.bundle.spec import DriftPrior
from realtime.bundle.statistics import VoxelStatistics
from realtime.preprocessing.stream import z_scored
from train.data.preprocessing import drift_basis, streamed
from train.data.prior import Priors, measure_priors
from train.data.workers import over_items
from train.errors import TrainError
from train.recipe import Preprocessing, Recipe


@dataclass(frozen=True, kw_only=True)
class Making:
    """Computes the arrays of one cache; later arrays are computed from earlier ones."""

    layout: Layout
    folder: Path
    recipe: Recipe
    keys: list[RunKey]
    prior_keys: list[RunKey]
    trials: list[RunTrial]
    repaired: dict[RunKey, range]
    """Volumes that are left out, by run."""
    n_voxels: int
    n_sessions: int | None
    workers: int | None

    def all(self) -> None:
        """Compute the arrays that the recipe trains on, and those that they are computed from."""
        forms = self.recipe.preprocessing.train_on
        if set(forms) & {"whole_run", "causal"}:
            self._rows()
            self._priors()
            self._whole_run()  # evaluation decodes it, whichever of the two the recipe trains on
        if "causal" in forms:
            self._causal()
        if "betas" in forms:
            self._betas()

    def _rows(self) -> None:
        shape = (len(self.keys), N_DESIGN_ROWS, self.n_voxels)
        work = partial(_read_run, self.layout, self.folder, self.repaired)
        self._make("rows", shape, work, self.keys, np.float32)

    def _priors(self) -> None:
        path = prior_path(self.folder, self.n_sessions)
        if path.exists():
            return
        rows = open_array(self.folder, "rows")
        whole_keys = [key for key in self.prior_keys if key not in self.repaired]
        if not whole_keys:
            raise TrainError(
                f"expected a run of subject {self.keys[0].subject} without repaired volumes to measure the "
                "prior on, found none; use more runs"
            )
        trains = tqdm([self.keys.index(key) for key in whole_keys], desc="prior", unit="run")
        settings = self.recipe.preprocessing
        priors = measure_priors((rows[index] for index in trains), settings.high_pass_hz, settings.tr_s)
        if settings.drift_prior and priors.drift:
            write_whole(_drift_path(self.folder, self.n_sessions), msgspec.json.encode(priors.drift).decode())
        with whole(path) as unfinished:  # last, so that both are there if this one is
            unfinished.write_bytes(priors.voxels.as_npz())

    def _whole_run(self) -> None:
        shape = (len(self.keys), N_DESIGN_ROWS, self.n_voxels)
        work = partial(_z_score_run, self.folder, self.recipe.preprocessing, self.repaired)
        self._make("whole_run", shape, work, self.keys)

    def _causal(self) -> None:
        window, trials = self.recipe.window, self.trials
        ends = [item.trial.onset_volume + window.delay_volumes for item in trials]
        places = _places([item.run for item in trials], self.keys)
        work = partial(_stream_run, self.folder, self.recipe, self.n_sessions, self.repaired, ends, places)
        shape = (len(trials), window.length_volumes, self.n_voxels)
        self._make(of_sessions("causal", self.n_sessions), shape, work, self.keys)

    def _betas(self) -> None:
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
        # In this order, because "done" marks without their array would be believed after an interruption.
        if not path.exists() or not done.exists():
            with whole(done) as unfinished:
                np.save(unfinished, np.zeros(len(items), dtype=np.uint8), allow_pickle=False)
        if not path.exists():
            with whole(path) as empty:
                np.lib.format.open_memmap(empty, mode="w+", dtype=dtype, shape=shape).flush()
        over_items(done, items, work, name=name, unit=unit, workers=self.workers)


def _read_run(layout: Layout, folder: Path, repaired: dict[RunKey, range], index: int, key: RunKey) -> None:
    rows = Run(layout, *key).roi_series(read_roi(layout, key.subject))
    rows[list(repaired.get(key, ()))] = np.nan
    _write(folder, "rows", index, rows)


def _z_score_run(
    folder: Path, preprocessing: Preprocessing, repaired: dict[RunKey, range], index: int, key: RunKey
) -> None:
    """Z-score what was recorded of a run; repaired volumes have no part in the fit, and become 0."""
    rows = open_array(folder, "rows")[index]
    recorded = np.setdiff1d(np.arange(len(rows)), repaired.get(key, ()))
    z_scores = np.zeros_like(rows)
    if len(recorded):
        z_scores[recorded] = z_scored(rows[recorded], drift_basis(len(rows), preprocessing)[recorded])
    _write(folder, "whole_run", index, z_scores)


def _stream_run(
    folder: Path,
    recipe: Recipe,
    n_sessions: int | None,
    repaired: dict[RunKey, range],
    ends: list[int],
    places: list[slice],
    index: int,
    key: RunKey,
) -> None:
    rows = open_array(folder, "rows")[index]
    if len(repaired.get(key, ())) == len(rows):
        return  # nothing of the run is used
    priors = read_priors(folder, n_sessions, rows.shape[-1])
    # Repaired volumes are NaN in `rows`, so the stream censors them.
    windows = streamed(rows, recipe, priors, ends[places[index]], recipe.window.length_volumes)
    _write(folder, of_sessions("causal", n_sessions), places[index], windows.transpose(0, 2, 1))


def _read_session(
    layout: Layout, folder: Path, subject: int, places: list[slice], index: int, session: int
) -> None:
    betas = read_betas(layout, subject, session, read_roi(layout, subject))
    n_trials = places[index].stop - places[index].start
    if len(betas) != n_trials:
        expected = f"as many betas as presentations in the session's runs on disk, {n_trials}"
        raise BadFile(betas_path(layout, subject, session), expected, str(len(betas)))
    deviation = betas.std(axis=0, ddof=1)
    z_scores = (betas - betas.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    _write(folder, "betas", places[index], z_scores[:, None])


def _places(owners: Sequence[Any], items: Sequence[Any]) -> list[slice]:
    """The slice of each item's presentations; presentations are in the order of their items."""
    bounds = np.searchsorted([items.index(owner) for owner in owners], range(len(items) + 1))
    return [slice(*bounds[index : index + 2].tolist()) for index in range(len(items))]


def of_sessions(name: str, n_sessions: int | None) -> str:
    """Name of an array that uses only the first ``n_sessions`` sessions, or all."""
    return name if n_sessions is None else f"{name}-first-{n_sessions}"


def prior_path(folder: Path, n_sessions: int | None) -> Path:
    """Path of the prior of the first ``n_sessions`` sessions, or of all."""
    return folder / f"{of_sessions('prior', n_sessions)}.npz"


def _drift_path(folder: Path, n_sessions: int | None) -> Path:
    return folder / f"{of_sessions('drift', n_sessions)}.json"


def read_priors(folder: Path, n_sessions: int | None, n_voxels: int) -> Priors:
    """The priors of the first ``n_sessions`` sessions, or of all."""
    voxels = VoxelStatistics.read(prior_path(folder, n_sessions), n_voxels)
    path = _drift_path(folder, n_sessions)
    drift = msgspec.json.decode(path.read_bytes(), type=DriftPrior) if path.exists() else None
    return Priors(voxels=voxels, drift=drift)


def open_array(folder: Path, name: str) -> NDArray[Any]:
    """An array of the cache, memory-mapped."""
    # As a plain array, because slicing numpy's memmap class takes longer than reading a window.
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))


def _write(folder: Path, name: str, where: int | slice, values: NDArray[Any]) -> None:
    array = np.load(folder / f"{name}.npy", mmap_mode="r+", allow_pickle=False)
    array[where] = values
    array.flush()
