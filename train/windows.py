"""Windows of preprocessed volumes, one for each presentation, cached as memory-mapped arrays.

CACHE/whole_run.npy, causal.npy   float16 [trials, V, T]: detrended over the whole run, or as streamed
CACHE/prior.npz                   per-voxel mean and SD of the training runs
CACHE/done.json                   what it was made from; written last
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nsd import Layout, Run, RunKey, read_roi
from nsd.splits import RunTrial, run_trials
from realtime import bundle
from realtime.preprocess import causal_windows, cosine_basis, whole_run
from train.errors import TrainError
from train.recipe import Preprocessing, Recipe, Window

FORMS = ("whole_run", "causal")


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The trials of some runs, and their windows in each form, float16 ``[trials, V, T]``."""

    trials: list[RunTrial]
    forms: dict[str, NDArray[np.float16]]

    @property
    def images(self) -> NDArray[np.int64]:
        """0-based 73k index of what each trial showed."""
        return np.array([item.trial.image for item in self.trials], dtype=np.int64)


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


def streaming_settings(preprocessing: Preprocessing) -> bundle.Preprocessing:
    """The runtime's preprocessing settings, from the recipe's."""
    return bundle.Preprocessing(
        high_pass_hz=preprocessing.high_pass_hz,
        warmup_volumes=preprocessing.warmup_volumes,
        prior_volumes=preprocessing.prior_volumes,
    )


def prepare(layout: Layout, keys: list[RunKey], recipe: Recipe, folder: Path) -> tuple[Windows, Prior]:
    """Windows of all presentations in ``keys``, from ``folder`` if they are there, else made and kept there.

    :raises TrainError: when ``folder`` was made from other runs or settings.
    """
    made_from = json.dumps(
        {
            "runs": [list(key) for key in keys],
            "window": msgspec.to_builtins(recipe.window),
            "preprocessing": msgspec.to_builtins(recipe.preprocessing),
        }
    )
    trials = run_trials(layout, keys)
    if not (folder / "done.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        prior = measure_prior(layout, keys, recipe.preprocessing.high_pass_hz)
        prior.save(folder / "prior.npz")
        _write_windows(layout, keys, len(trials), recipe, prior, folder)
        (folder / "done.json").write_text(made_from)
    elif (folder / "done.json").read_text() != made_from:
        raise TrainError(f"{folder} holds windows of other runs or settings; remove it to make them anew")
    forms = {form: np.load(folder / f"{form}.npy", mmap_mode="r", allow_pickle=False) for form in FORMS}
    return Windows(trials=trials, forms=forms), Prior.load(folder / "prior.npz")


def run_windows(
    layout: Layout, key: RunKey, window: Window, preprocessing: Preprocessing, prior: Prior
) -> dict[str, NDArray[np.float16]]:
    """Windows of one run's presentations in each form, float16 ``[trials, V, T]``."""
    run = Run(layout, *key)
    rows = run.roi_series(read_roi(layout, key.subject))
    starts = np.array([trial.onset_volume for trial in run.trials]) + window.offset_volumes
    z_rows = whole_run(rows, run.tr_s, preprocessing.high_pass_hz)
    offline = np.stack([z_rows[start : start + window.length_volumes].T for start in starts])
    streamed = causal_windows(
        rows,
        run.tr_s,
        streaming_settings(preprocessing),
        prior.mean,
        prior.sd,
        window.length_volumes,
        (starts + window.length_volumes - 1).tolist(),
    )
    return {"whole_run": offline.astype(np.float16), "causal": streamed.astype(np.float16)}


def measure_prior(layout: Layout, keys: list[RunKey], high_pass_hz: float) -> Prior:
    """Mean over runs of each voxel's mean, and root mean square over runs of its SD after drift removal."""
    means: Any = 0.0
    variances: Any = 0.0
    for key in tqdm(keys, desc="prior", unit="run"):
        run = Run(layout, *key)
        rows = run.roi_series(read_roi(layout, key.subject)).astype(np.float64)
        basis, _ = np.linalg.qr(cosine_basis(len(rows), run.tr_s, high_pass_hz))
        means = means + rows.mean(axis=0)
        residuals = rows - basis @ (basis.T @ rows)
        variances = variances + np.square(residuals).sum(axis=0) / (len(rows) - 1)
    n = len(keys)
    return Prior(mean=(means / n).astype(np.float32), sd=np.sqrt(variances / n).astype(np.float32))


def _write_windows(
    layout: Layout, keys: list[RunKey], n_trials: int, recipe: Recipe, prior: Prior, folder: Path
) -> None:
    shape = (n_trials, len(prior.mean), recipe.window.length_volumes)
    arrays = {
        form: np.lib.format.open_memmap(folder / f"{form}.npy", mode="w+", dtype=np.float16, shape=shape)
        for form in FORMS
    }
    at = 0
    for key in tqdm(keys, desc="windows", unit="run"):
        windows = run_windows(layout, key, recipe.window, recipe.preprocessing, prior)
        n = len(windows["causal"])
        for form, array in arrays.items():
            array[at : at + n] = windows[form]
        at += n
    for array in arrays.values():
        array.flush()
