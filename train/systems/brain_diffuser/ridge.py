"""Ridge regression at NSD's size: windows are read in blocks, the strength is chosen on held-out windows.

With centred windows X ``[n, p]``, centred targets Z ``[n, k]`` and a strength l the weights are

    (X'X + l)^-1 X'Z    normal equations, p x p
    X'(XX' + l)^-1 Z    their dual, n x n

The smaller system is solved, by Cholesky. Two or three such matrices are in memory, and one or two blocks of
windows: for 25 000 windows of 94 344 numbers, a matrix of the dual takes 2.5 GB. Strengths are in units of a
window's mean squared norm, so that they are comparable between ROIs, windows and subjects. At useful
strengths, the error of single precision is well below the noise of the recordings.

Legend: n windows, p numbers in one, k targets, h held-out windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from tqdm import tqdm

from train.errors import TrainError

Floats = NDArray[np.float32]
_BLOCK = 2048


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Flattened windows ``[n, p]``, which are read in blocks."""

    n: int
    width: int
    read: Callable[[NDArray[np.int64]], Floats]
    """Reads the windows of given indices, float32 ``[indices, p]``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """Weights ``[p, k]`` and intercept ``[k]`` fitted to all windows, and the choice of strengths."""

    weights: Floats
    intercept: Floats
    strengths: tuple[float, ...]
    """The strength chosen for each group of targets."""
    explained: tuple[float, ...]
    """Share of each group's variance that is explained in the held-out windows."""
    held_out: Floats
    """Predictions of the held-out windows by a fit to the others, at these strengths: ``[h, k]``."""


def fit_ridge(
    windows: Windows,
    targets: Floats,
    held_out: NDArray[np.bool_],
    strengths: Sequence[float],
    groups: Sequence[slice],
) -> Fit:
    """Fit targets ``[n, k]``, each group at the strength that predicts its held-out rows best.

    :param held_out: rows on which strengths are compared, bool ``[n]``
    :param groups: slices that together cover all targets
    :raises TrainError: windows or targets are not finite, so that a matrix cannot be factored
    """
    if not np.isfinite(targets).all():
        raise TrainError("expected finite tokens and latents to regress on; check the base model")
    system: _System = (_Primal if windows.width < windows.n else _Dual)(windows, targets, held_out)
    truth = targets[held_out]
    variances = np.square(truth - targets[~held_out].mean(axis=0)).sum(axis=0, dtype=np.float64)
    best = np.full(len(groups), np.inf)
    chosen = [0.0] * len(groups)
    predicted = np.empty_like(truth)
    for strength in tqdm(strengths, desc="ridge strengths"):
        trial = system.predict_held_out(strength)
        for place, group in enumerate(groups):
            error = np.square(trial[:, group] - truth[:, group]).sum(dtype=np.float64)
            if error < best[place]:
                best[place], chosen[place] = error, strength
                predicted[:, group] = trial[:, group]
    weights = np.empty((windows.width, targets.shape[1]), dtype=np.float32)
    intercept = np.empty(targets.shape[1], dtype=np.float32)
    for strength in set(chosen):
        fitted, constant = system.solve(strength)
        for group in (group for group, own in zip(groups, chosen, strict=True) if own == strength):
            weights[:, group], intercept[group] = fitted[:, group], constant[group]
    explained = [1 - float(error / variances[group].sum()) for error, group in zip(best, groups, strict=True)]
    return Fit(
        weights=weights,
        intercept=intercept,
        strengths=tuple(chosen),
        explained=tuple(explained),
        held_out=predicted,
    )


class _System(Protocol):
    """The equations of one regression, which can be solved at any strength."""

    def predict_held_out(self, strength: float) -> Floats:
        """Predictions of the held-out windows by a fit to the others, ``[h, k]``."""

    def solve(self, strength: float) -> tuple[Floats, Floats]:
        """Weights ``[p, k]`` and intercept ``[k]`` of a fit to all windows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Moments:
    """Sums over windows: of x ``[p]``, of z ``[k]``, of xx' ``[p, p]`` and of xz' ``[p, k]``."""

    n: int
    x: Floats
    z: Floats
    xx: Floats
    xz: Floats

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(
            n=self.n + other.n,
            x=self.x + other.x,
            z=self.z + other.z,
            xx=self.xx + other.xx,
            xz=self.xz + other.xz,
        )

    def solve(self, strength: float) -> tuple[Floats, Floats]:
        x_mean, z_mean = self.x / self.n, self.z / self.n
        matrix = self.xx - np.outer(self.x, x_mean)
        scale = np.trace(matrix, dtype=np.float64) / self.n
        right = self.xz - np.outer(self.x, z_mean)
        weights = _solve(matrix, strength * scale, right)
        intercept = np.asarray(z_mean - x_mean @ weights, dtype=np.float32)
        return weights, intercept


class _Primal:
    def __init__(self, windows: Windows, targets: Floats, held_out: NDArray[np.bool_]) -> None:
        self._windows, self._targets = windows, targets
        self._held_out = np.flatnonzero(held_out)
        self._fitted = self._moments(np.flatnonzero(~held_out), "normal equations")
        self._all = self._fitted + self._moments(self._held_out, "held-out windows")

    def predict_held_out(self, strength: float) -> Floats:
        weights, intercept = self._fitted.solve(strength)
        parts = [self._windows.read(rows) @ weights for rows in _blocks(self._held_out)]
        predicted: Floats = np.concatenate(parts) + intercept
        return predicted

    def solve(self, strength: float) -> tuple[Floats, Floats]:
        return self._all.solve(strength)

    def _moments(self, rows: NDArray[np.int64], name: str) -> _Moments:
        p, k = self._windows.width, self._targets.shape[1]
        sums = _Moments(n=len(rows), x=_zeros(p), z=_zeros(k), xx=_zeros(p, p), xz=_zeros(p, k))
        for block in tqdm(list(_blocks(rows)), desc=name, unit="block"):
            x, z = self._windows.read(block), self._targets[block]
            for total, part in ((sums.x, x.sum(axis=0)), (sums.z, z.sum(axis=0))):
                total += part
            for total, part in ((sums.xx, x.T @ x), (sums.xz, x.T @ z)):
                total += part
        return sums


class _Dual:
    def __init__(self, windows: Windows, targets: Floats, held_out: NDArray[np.bool_]) -> None:
        self._windows, self._targets = windows, targets
        self._held_out, self._fitted = np.flatnonzero(held_out), np.flatnonzero(~held_out)
        self._products = _zeros(windows.n, windows.n)
        """xx' of every pair of windows."""
        blocks = list(_blocks(np.arange(windows.n)))
        for i, rows in enumerate(tqdm(blocks, desc="kernel", unit="block")):
            x = windows.read(rows)
            for columns in blocks[: i + 1]:
                part = x @ (x if columns is rows else windows.read(columns)).T
                self._products[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = part
                self._products[columns[0] : columns[-1] + 1, rows[0] : rows[-1] + 1] = part.T

    def predict_held_out(self, strength: float) -> Floats:
        fitted = self._fitted
        dual, z_mean = self._solve_dual(fitted, strength)
        # Centring by the fitted windows' mean; the other terms vanish, because the columns of dual sum to 0.
        across = self._products[np.ix_(self._held_out, fitted)]
        mean_products = self._products[np.ix_(fitted, fitted)].mean(axis=0)
        predicted: Floats = (across - mean_products) @ dual + z_mean
        return predicted

    def solve(self, strength: float) -> tuple[Floats, Floats]:
        everything = np.arange(self._windows.n)
        dual, z_mean = self._solve_dual(everything, strength)
        weights, x_sum = _zeros(self._windows.width, dual.shape[1]), _zeros(self._windows.width)
        for rows in _blocks(everything):
            x = self._windows.read(rows)
            weights += x.T @ dual[rows]  # x needs no centring, because the columns of dual sum to 0
            x_sum += x.sum(axis=0)
        return weights, z_mean - (x_sum / self._windows.n) @ weights

    def _solve_dual(self, rows: NDArray[np.int64], strength: float) -> tuple[Floats, Floats]:
        """(XX' + l)^-1 Z of the given windows, ``[rows, k]``, and the mean of their targets ``[k]``."""
        matrix = self._products[np.ix_(rows, rows)]
        mean = matrix.mean(axis=0)
        matrix += mean.mean() - mean - mean[:, None]
        scale = np.trace(matrix, dtype=np.float64) / len(rows)
        targets = self._targets[rows]
        z_mean = targets.mean(axis=0)
        dual = _solve(matrix, strength * scale, targets - z_mean)
        return dual - dual.mean(axis=0), z_mean  # its columns sum to 0, except for rounding


def _solve(matrix: Floats, added: float, right: Floats) -> Floats:
    """(matrix + added)^-1 right; overwrites the matrix."""
    matrix.flat[:: len(matrix) + 1] += np.float32(added)
    try:
        # The transpose of a symmetric matrix is the same in Fortran's order, so nothing is copied.
        factor = cho_factor(matrix.T, lower=True, overwrite_a=True)
    except (LinAlgError, ValueError) as error:
        raise TrainError(
            f"expected finite windows and targets: {error}; prepare the recordings again"
        ) from error
    solution: Floats = cho_solve(factor, right, check_finite=False)
    return np.ascontiguousarray(solution)


def _blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))


def _zeros(*shape: int) -> Any:
    return np.zeros(shape, dtype=np.float32)
