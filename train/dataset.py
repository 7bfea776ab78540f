"""Windows of prepared recordings as a torch data set: what was recorded, what was shown, who saw it.

Legend: B batch, V voxels of the largest region, T volumes of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from nsd import N_DESIGN_ROWS
from train.cache import Cache
from train.errors import TrainError
from train.recipe import Window

Form = Literal["whole_run", "causal"]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Windows of one subject in one form: rows ``start`` to ``start + T`` of ``rows`` ``[n, V]``."""

    rows: NDArray[np.float16]
    starts: NDArray[np.int64]
    images: NDArray[np.int64]
    subject: int
    """Place of the subject's layers in the model."""


def examples(
    cache: Cache, trials: NDArray[np.int64], window: Window, form: Form, subject: int = 0
) -> Examples:
    """The windows of some of a cache's presentations.

    :param trials: indices into ``cache.trials``
    :raises TrainError: when a window reaches beyond its run
    """
    chosen = [cache.trials[trial] for trial in trials.tolist()]
    images = np.array([item.trial.image for item in chosen], dtype=np.int64)
    if form == "causal":
        # Prepared for the recipe's window, one after the other.
        starts = trials * cache.causal.shape[1]
        rows = cache.causal.reshape(-1, cache.causal.shape[2])
        return Examples(rows=rows, starts=starts, images=images, subject=subject)
    first = np.array([item.trial.onset_volume for item in chosen], dtype=np.int64) + window.offset_volumes
    outside = (first < 0) | (first + window.length_volumes > N_DESIGN_ROWS)
    if outside.any():
        item = chosen[int(np.flatnonzero(outside)[0])]
        raise TrainError(
            f"the window of the picture at volume {item.trial.onset_volume} of {item.run} reaches beyond the "
            "run; leave such trials out, or take another window"
        )
    run_index = {key: index for index, key in enumerate(cache.runs)}
    runs = np.array([run_index[item.run] for item in chosen], dtype=np.int64)
    rows = cache.whole_run.reshape(-1, cache.whole_run.shape[2])
    return Examples(rows=rows, starts=runs * N_DESIGN_ROWS + first, images=images, subject=subject)


class WindowData(Dataset[tuple[Tensor, int, int]]):
    """Windows of any number of subjects and forms, one after the other.

    An example is (window float16 ``[V, T]``, 0-based image, subject index); smaller regions end in zeros.
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

        The windows are a view of ``[B, T, V]``, the order in which they lie on disk and are multiplied.
        """
        rows_BTV = np.zeros((len(indices), self._n_volumes, self.n_voxels), dtype=np.float16)
        for place, index in enumerate(indices.tolist()):
            rows, start = self._parts[self._part[index]].rows, self._starts[index]
            rows_BTV[place, :, : rows.shape[1]] = rows[start : start + self._n_volumes]
        windows_BVT = torch.from_numpy(rows_BTV).transpose(1, 2)
        return windows_BVT, self.images[indices], torch.from_numpy(self.subjects[indices])
