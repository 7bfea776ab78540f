"""A torch data set of windows from caches, with the image that was shown and the subject who saw it.

Legend: B batch, V voxels of the largest ROI, T volumes of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from nsd import N_DESIGN_ROWS
from realtime.bundle.spec import Window
from train.data.cache import Cache
from train.data.preprocessing import streamed
from train.data.trials import Trials, inside_run, recorded
from train.errors import TrainError
from train.recipe import Form, Recipe


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Windows of one subject in one form: rows ``start`` to ``start + T`` of ``rows`` ``[n, V]``."""

    rows: NDArray[np.float16]
    starts: NDArray[np.int64]
    images: NDArray[np.int64]
    subject: int
    """Index of the subject's layers in the model."""


def examples(cache: Cache, trials: Trials, window: Window, form: Form, subject: int = 0) -> Examples:
    """The windows of some presentations in a cache.

    :raises TrainError: a window reaches beyond its run, or holds repaired volumes
    """
    images = cache.images[trials]
    values = cache.form(form)
    rows = values.reshape(-1, values.shape[2])
    if form != "whole_run":
        # These arrays hold the recipe's windows, one after the other.
        return Examples(rows=rows, starts=trials * values.shape[1], images=images, subject=subject)
    usable = recorded(cache, inside_run(cache, trials, window), window)
    if len(usable) < len(trials):
        item = cache.trials[int(np.setdiff1d(trials, usable)[0])]
        raise TrainError(
            f"the window of the picture at volume {item.trial.onset_volume} of {item.run} reaches beyond the "
            "run, or holds volumes that NSD's authors repaired; leave out such trials, or take another window"
        )
    run_index = {key: index for index, key in enumerate(cache.runs)}
    chosen = [cache.trials[trial] for trial in trials.tolist()]
    first = np.array([item.trial.onset_volume for item in chosen], dtype=np.int64) + window.offset_volumes
    runs = np.array([run_index[item.run] for item in chosen], dtype=np.int64)
    return Examples(rows=rows, starts=runs * N_DESIGN_ROWS + first, images=images, subject=subject)


class WindowData(Dataset[tuple[Tensor, int, int]]):
    """The windows of several subjects and forms, one after the other.

    An example is (window float16 ``[V, T]``, 0-based image, subject index). Smaller ROIs are padded with
    zeros.
    """

    def __init__(self, parts: Sequence[Examples], n_volumes: int) -> None:
        self._parts = list(parts)
        self._n_volumes = n_volumes
        self.n_voxels = max(part.rows.shape[1] for part in parts)
        sizes = [len(part.starts) for part in parts]
        self._part = np.repeat(np.arange(len(sizes)), sizes)
        self._starts = np.concatenate([part.starts for part in parts])
        self.images = np.concatenate([part.images for part in parts])
        self.subjects = np.repeat([part.subject for part in parts], sizes)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        windows, images, subjects = self.batch(np.array([index]))
        return windows[0], int(images[0]), int(subjects[0])

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64], Tensor]:
        """Windows float16 ``[B, V, T]``, images ``[B]``, subject indices ``[B]``.

        The windows are a view of ``[B, T, V]``, the order on disk and in the model's first multiplication.
        """
        rows_BTV = np.zeros((len(indices), self._n_volumes, self.n_voxels), dtype=np.float16)
        for place, index in enumerate(indices.tolist()):
            rows, start = self._parts[self._part[index]].rows, self._starts[index]
            rows_BTV[place, :, : rows.shape[1]] = rows[start : start + self._n_volumes]
        windows_BVT = torch.from_numpy(rows_BTV).transpose(1, 2)
        return windows_BVT, self.images[indices], torch.from_numpy(self.subjects[indices])


def averaged_windows(
    cache: Cache, groups: Sequence[Trials], window: Window, form: Form, recipe: Recipe
) -> NDArray[np.float16]:
    """The mean window of each group of presentations, ``[groups, V, T]``, for evaluation.

    Causal windows are computed from the recorded rows, because the cache holds those of one window only.
    """
    trials = np.unique(np.concatenate(list(groups)))
    windows = _causal(cache, trials, window, recipe) if form == "causal" else None
    if windows is None:
        data = WindowData([examples(cache, trials, window, form)], window.length_volumes)
        windows = data.batch(np.arange(len(data)))[0].numpy()
    means = [windows[np.searchsorted(trials, group)].mean(axis=0, dtype=np.float32) for group in groups]
    return np.stack(means).astype(np.float16)


def _causal(cache: Cache, trials: Trials, window: Window, recipe: Recipe) -> NDArray[np.float16]:
    parts = []
    runs = [cache.runs.index(cache.trials[trial].run) for trial in trials.tolist()]
    for run in np.unique(runs).tolist():
        here = trials[np.equal(runs, run)]
        ends = [cache.trials[trial].trial.onset_volume + window.delay_volumes for trial in here.tolist()]
        windows = streamed(cache.rows[run], recipe, cache.priors, ends, window.length_volumes)
        parts.append(windows.astype(np.float16))
    return np.concatenate(parts)
