"""Least squares over a growing series, exact at every row, without keeping the series.

The fit of many series on a few regressors is carried as its triangular factor: with the regressors seen so
far ``F = Q R``, the state is ``R`` [K, K], ``Q' Y`` [K, V], the residual sum of squares [V] and the last T
rows of ``Q``. A new row is rotated into it by K Givens rotations: O(K) work per series, however long the run
already is (Gentleman 1974, "Basic procedures for large, sparse or weighted linear least squares problems").

The normal equations ``beta = inv(F'F) F'Y`` would not do: over the first volumes of a run, slow cosines are
nearly collinear (five of them over 8 of 225 volumes have a condition number of 4e12), and ``F'F`` squares
that. Rotations invert nothing, and they sum the residual sum of squares from squares, without cancellation.

Legend: K regressors, T recent rows, V series (voxels).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr
from scipy.linalg.blas import daxpy, drot

Floats = NDArray[np.float64]

RANK_TOLERANCE = 100 * float(np.finfo(np.float64).eps)
"""A regressor (of size about 1) that adds less than this to the others' span is left out, as in nilearn."""

FLAT = 1e-24
"""A series whose residual sum of squares is below this share of its sum of squares does not vary."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shrinkage:
    """Of every regressor, [K]."""

    penalties: Floats
    """The ridge fit minimises the residual sum of squares and ``sum(penalties * coefficients ** 2)``."""
    rescale: Floats
    """Each coefficient of the ridge fit is then multiplied by this."""


class StreamingFit:
    """Fits V series on K regressors of size about 1, row by row; keeps the last T rows."""

    def __init__(self, n_regressors: int, n_series: int, recent_rows: int) -> None:
        self.n_rows = 0
        self._k, self._t = n_regressors, recent_rows
        self._newest = -1
        self._has_full_rank = False
        # R, the recent rows of Q (as columns) and Q'Y side by side, so that a rotation is one operation.
        self._state = np.zeros((n_regressors, n_regressors + recent_rows + n_series))
        self._incoming = np.zeros(self._state.shape[1])
        self._recent = np.zeros((recent_rows, n_series))
        self._rss = np.zeros(n_series)
        self._sum_squares = np.zeros(n_series)

    def add(self, regressors: Floats, row: Floats) -> None:
        """Add the next row to the fit: regressors [K] and series [V]."""
        k, t, incoming = self._k, self._t, self._incoming
        self._newest = (self._newest + 1) % t
        self._recent[self._newest] = row
        self._state[:, k + self._newest] = 0.0
        incoming[:k] = regressors
        incoming[k : k + t] = 0.0
        incoming[k + self._newest] = 1.0
        incoming[k + t :] = row
        for pivot in range(k):
            self._rotate(pivot)
        innovation = incoming[k + t :]
        self._rss += np.multiply(innovation, innovation, out=innovation)
        self._sum_squares += np.multiply(row, row, out=innovation)
        self.n_rows += 1

    def state(self) -> dict[str, NDArray[Any]]:
        """All that later rows depend on, by name. The arrays are the fit's own: a later row changes them."""
        return {
            "place": np.array([self.n_rows, self._newest, self._has_full_rank], dtype=np.int64),
            "factor": self._state,
            "recent": self._recent,
            "rss": self._rss,
            "sum_squares": self._sum_squares,
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from the state of another fit of this size."""
        n_rows, newest, has_full_rank = (int(number) for number in state["place"])
        self.n_rows, self._newest, self._has_full_rank = n_rows, newest, bool(has_full_rank)
        for name, array in self.state().items():
            if name != "place":
                array[:] = state[name]

    def innovation(self, regressors: Floats, row: Floats) -> Floats:
        """The recursive residual [V] of a row that is not in the fit: its distance from the fit.

        That is the error of the fit's forecast over ``sqrt(1 + x' inv(F'F) x)``. If the fit's model is true,
        recursive residuals are independent and have the variance of its errors (Brown, Durbin and Evans 1975,
        "Techniques for testing the constancy of regression relationships over time").
        """
        x, error = regressors.copy(), row.copy()
        for pivot in range(self._k):  # as in `add`, but the state stays as it is
            if x[pivot] == 0.0:
                continue
            kept = self._state[pivot]
            cosine, sine = self._rotation(pivot, x[pivot])
            x = cosine * x - sine * kept[: self._k]
            x[pivot] = 0.0
            error *= cosine
            daxpy(kept[self._k + self._t :], error, a=-sine)  # in place
        return error

    def repeat(self) -> None:
        """Repeat the newest row in place of a row that is not fitted."""
        previous = self._newest
        self._newest = (previous + 1) % self._t
        self._recent[self._newest] = self._recent[previous]
        self._state[:, self._k + self._newest] = self._state[:, self._k + previous]

    def recent(self, ages: Sequence[int]) -> Floats:
        """Recent rows of the series [len(ages), V]; age 0 is the newest, T - 1 the oldest."""
        return self._recent[self._slots(ages)]

    def mean(self) -> Floats:
        """Mean [V] of the rows fitted; the last regressor must be the constant 1."""
        total: Floats = self._state[:, self._k - 1] @ self._projections
        return total / self.n_rows

    def variance(self) -> Floats:
        """Variance [V] of the residuals, over their degrees of freedom; 0 for a series that does not vary."""
        varies = self._rss > FLAT * self._sum_squares
        return np.where(varies, self._rss, 0.0) / max(self.n_rows - self._k, 1)

    def sd(self) -> Floats:
        """SD (ddof 1) [V] of the residuals, which scales z-scores; 0 for a series that does not vary."""
        sd: Floats = np.sqrt(self.variance() * (max(self.n_rows - self._k, 1) / max(self.n_rows - 1, 1)))
        return sd

    def sum_squares(self) -> Floats:
        """Sum of squares [V] of the rows fitted."""
        return self._sum_squares

    def z_scores(self, ages: Sequence[int], shrinkage: Shrinkage | None = None) -> NDArray[np.float32]:
        """Residuals of recent rows in the fit so far, over the SD (ddof 1) of all: [V, len(ages)].

        :param shrinkage: the fit is penalised so; the state is that of the free fit in any case
        """
        slots = self._slots(ages)
        q_rows = self._state[:, self._k + slots].T
        if shrinkage is None:
            null = self._null_space()
            if null.shape[1]:
                q_rows = q_rows - (q_rows @ null) @ null.T
            left = null.T
        else:
            fitted = self._fitted(shrinkage)
            q_rows = q_rows @ fitted
            left = np.eye(self._k) - fitted
        residuals = self._recent[slots]
        residuals -= q_rows @ self._projections
        residuals *= self._inverse_sd(left)
        return np.ascontiguousarray(residuals.T, dtype=np.float32)

    @property
    def _projections(self) -> Floats:
        return self._state[:, self._k + self._t :]

    def _slots(self, ages: Sequence[int]) -> NDArray[np.intp]:
        return (self._newest - np.asarray(ages, dtype=np.intp)) % self._t

    def _rotation(self, pivot: int, regressor: float) -> tuple[float, float]:
        """Cosine and sine of the rotation that moves a regressor into the state."""
        kept = self._state[pivot, pivot]
        radius = math.hypot(kept, regressor)
        return kept / radius, regressor / radius

    def _rotate(self, pivot: int) -> None:
        """Rotate ``incoming`` into row ``pivot`` of the state so that its regressor ``pivot`` becomes 0."""
        kept, incoming = self._state[pivot], self._incoming
        if incoming[pivot] == 0.0:
            return
        cosine, sine = self._rotation(pivot, incoming[pivot])
        drot(kept, incoming, cosine, sine, overwrite_x=True, overwrite_y=True)  # one pass over the memory
        incoming[pivot] = 0.0

    def _null_space(self) -> Floats:
        """Directions [K, K - rank] in which the regressors so far are collinear; the fit leaves them out."""
        if not self._has_full_rank:
            q, r, _ = qr(self._state[:, : self._k], pivoting=True)
            null: Floats = q[:, np.abs(np.diag(r)) <= RANK_TOLERANCE]
            if null.shape[1]:
                return null
            self._has_full_rank = True  # for good: more rows never lower the rank
        return np.empty((self._k, 0))

    def _fitted(self, shrinkage: Shrinkage) -> Floats:
        """What the penalised fit takes of the projections ``Q'Y``: [K, K].

        With ``F = Q R``, the ridge fit of Y on F is that of ``[Q'Y; 0]`` on ``[R; sqrt(penalties)]``.
        """
        factor = self._state[:, : self._k]
        penalised = np.vstack([factor, np.diag(np.sqrt(shrinkage.penalties))])
        inverse = np.linalg.pinv(penalised, rcond=RANK_TOLERANCE)[:, : self._k]
        fitted: Floats = factor @ (shrinkage.rescale[:, None] * inverse)
        return fitted

    def _inverse_sd(self, left: Floats) -> Floats:
        """One over the SD [V] of the residuals, of which ``left @ Q'Y`` is a part that the fit leaves."""
        rss = self._rss
        if len(left):
            lost = left @ self._projections
            rss = rss + np.einsum("rv,rv->v", lost, lost)
        scale = np.zeros_like(rss)
        np.divide(self.n_rows - 1, rss, out=scale, where=rss > FLAT * self._sum_squares)
        return np.sqrt(scale, out=scale)
