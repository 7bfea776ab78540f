"""Streaming preprocessing: volumes in, z-scores of the region's last T volumes out. Pure, no I/O.

At volume n, in this order:

1. mask to the region of interest;
2. *censor* the volume if more than 1 % of the region is not finite, else *repair* the few bad voxels with
   their last good value; censor it also if it is a spike (if a rule is given:
   :mod:`realtime.preprocessing.spikes`);
3. subtract the run's first volume, for numerical precision only: a fit with a constant is invariant to it;
4. update the least-squares fit of slow cosine drifts; their basis is that of the whole planned run;
5. z-score the residuals of the last T volumes by the fit on volumes 0..n; if the bundle has a prior of the
   drifts, by the ridge fit (:mod:`realtime.preprocessing.drift`).

Without a prior of the drifts, the result equals ``nilearn.signal.clean`` on the prefix 0..n with the basis as
confounds and ddof 1, to the precision that float64 allows: about ``c * 2e-16`` for a basis whose prefix has
condition number c. That is 1e-6 at 0.008 Hz after 15 of 225 volumes, and at 0.01 Hz, which adds two cosines,
after 40. Until there are more than K + 2 volumes, mean and SD come from a per-voxel prior:
``mean = (sum + k * prior_mean) / (n + k)``, and likewise the variance. After that it has no influence.

A censored or missing volume is not fitted; in windows the row before it takes its place.

Legend: V voxels of the region in C order, T volumes of a window, K regressors, n volumes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import DriftPrior, Preprocessing
from realtime.bundle.statistics import VoxelStatistics
from realtime.errors import PreprocessError
from realtime.preprocessing.drift import cosine_basis, shrinkage
from realtime.preprocessing.least_squares import FLAT, Floats, StreamingFit
from realtime.preprocessing.spikes import SpikeRule, SpikeWatch, rms_sd

CENSOR_SHARE = 0.01
"""A volume with a larger share of non-finite voxels in the region is censored."""

LARGEST = float(np.finfo(np.float32).max)
"""Larger values count as not finite: their squares would overflow."""

State = Literal["warming", "trusted", "censored"]


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """The result of pushing a volume."""

    status: State
    repaired_voxels: int
    """Voxels that were not finite and got their last good value."""
    reason: str = ""
    """Why it was censored."""
    global_signal: float | None = None
    """Mean of the region's voxels; None where too many are not finite."""
    dvars: float | None = None
    """RMS over the region's voxels of the change from the volume before, in the scanner's units (Power et al.
    2012); None where that one is missing or not finite."""
    tsnr: float | None = None
    """Median over the region's voxels of their mean over their SD after detrending, so far; None until there
    are enough volumes for a fit."""


class StreamingPreprocessor:
    """Preprocesses one run: push volumes in order, and take the window after any of them.

    :param mask: bool [x, y, z], the region on the scanner's grid
    :param n_volumes: planned length of the run; fixes the drift basis
    :param prior: per-voxel mean and SD of earlier runs
    :param spikes: which finite volumes to censor; None: none
    :param n_confounds: regressors of every volume that are fitted together with the drifts, C
    :param drift_prior: how large drifts are; None: the fit of the drifts is free
    :raises PreprocessError: when these do not fit each other
    """

    def __init__(
        self,
        mask: NDArray[np.bool_],
        n_volumes: int,
        tr_s: float,
        settings: Preprocessing,
        prior: VoxelStatistics,
        window_volumes: int,
        spikes: SpikeRule | None = None,
        n_confounds: int = 0,
        drift_prior: DriftPrior | None = None,
    ) -> None:
        n_voxels = int(np.count_nonzero(mask))
        _check_prior(n_voxels, prior.mean, prior.sd)
        self._shape = mask.shape
        self._voxels = np.flatnonzero(mask)
        self._settings = settings
        self._prior_mean = prior.mean.astype(np.float64)
        self._prior_variance = np.square(prior.sd.astype(np.float64))
        self._basis = cosine_basis(n_volumes, tr_s, settings.high_pass_hz)
        # The fit wants regressors of size about 1; their scale does not change what they span.
        self._basis /= np.abs(self._basis).max(axis=0)
        self._shrinkage = shrinkage(self._basis, tr_s, drift_prior, n_confounds) if drift_prior else None
        self._n_confounds = n_confounds
        n_regressors = n_confounds + self._basis.shape[1]
        self._needed = n_regressors + 3
        self._fit = StreamingFit(n_regressors, n_voxels, window_volumes)
        self._spikes = SpikeWatch(spikes) if spikes else None
        self._ages = range(window_volumes - 1, -1, -1)
        self._first: Floats | None = None
        self._last = self._prior_mean
        self._previous: Floats | None = None
        """The row of the newest volume, if it was finite."""
        self._index = -1

    @classmethod
    def for_bundle(
        cls,
        bundle: Bundle,
        n_volumes: int,
        tr_s: float,
        spikes: SpikeRule | None = None,
        prior: VoxelStatistics | None = None,
        n_confounds: int = 0,
        window_volumes: int | None = None,
    ) -> StreamingPreprocessor:
        """For a run of a bundle's subject; otherwise as the constructor.

        :param prior: by default the bundle's
        :param window_volumes: by default those of the bundle's longest window
        """
        return cls(
            bundle.roi_mask,
            n_volumes,
            tr_s,
            bundle.spec.preprocessing,
            prior or bundle.prior,
            window_volumes or bundle.window_volumes,
            spikes,
            n_confounds,
            bundle.spec.drift_prior,
        )

    def push(self, index: int, volume: NDArray[Any]) -> Pushed:
        """Add volume ``index`` [x, y, z]; indices must rise, and those left out count as missing.

        :raises PreprocessError: on a wrong shape, or an index that is not next or beyond the planned run
        """
        if volume.shape != self._shape:
            raise PreprocessError(f"expected a volume of shape {self._shape}, got {volume.shape}")
        return self.push_row(index, volume.reshape(-1)[self._voxels])

    def push_row(
        self, index: int, row: NDArray[Any], censored: str = "", confounds: Sequence[float] = ()
    ) -> Pushed:
        """Add the region's voxels [V] of volume ``index``; otherwise as :meth:`push`.

        :param censored: why the volume is not to be used; empty if it is
        :param confounds: the volume's own regressors [C], of size about 1; none of a volume that is censored
        """
        self._check(index, row)
        if len(confounds) != self._n_confounds and not censored:
            raise PreprocessError(f"expected {self._n_confounds} confounds, got {len(confounds)}")
        if index > self._index + 1:
            self._previous = None
        self._fill(index - self._index - 1)
        self._index = index
        values = row.astype(np.float64)
        bad = ~(np.abs(values) <= LARGEST)
        n_bad = int(np.count_nonzero(bad))
        if n_bad > CENSOR_SHARE * row.size:
            self._previous = None
            return self._censor(censored or "too many of its ROI voxels are not finite")
        values = np.where(bad, self._last, values) if n_bad else values
        previous, self._previous = self._previous, values
        dvars = None if previous is None else float(np.sqrt(np.mean(np.square(values - previous))))
        # The constant must stay the last regressor.
        regressors = np.concatenate([np.asarray(confounds, dtype=np.float64), self._basis[index]])
        if reason := censored or self._spike(values, regressors):
            pushed = self._censor(reason)
        else:
            self._accept(values, regressors)
            pushed = Pushed(status=self._status(), repaired_voxels=n_bad)
        return replace(pushed, global_signal=float(values.mean()), dvars=dvars, tsnr=self._tsnr())

    def window(self) -> NDArray[np.float32] | None:
        """Z-scores [V, T] of the last T volumes, all by the fit as of now; None while the run is shorter."""
        if self._first is None or self._index + 1 < len(self._ages):
            return None
        if self._fit.n_rows >= self._needed:
            return self._fit.z_scores(self._ages, self._shrinkage)
        return self._prior_z_scores(self._first)

    def statistics(self) -> VoxelStatistics | None:
        """Mean and SD of the volumes so far; None while there are too few for a fit."""
        if self._first is None or self._fit.n_rows < self._needed:
            return None
        mean, sd = self._first + self._fit.mean(), self._fit.sd()
        return VoxelStatistics(mean=mean.astype(np.float32), sd=sd.astype(np.float32))

    @property
    def index(self) -> int:
        """The newest volume that was pushed; -1 before the first."""
        return self._index

    def state(self) -> dict[str, NDArray[Any]]:
        """All that later windows depend on, by name; copies, which a later volume does not change.

        ``first`` is NaN before the first good volume, ``previous`` where the newest volume was not finite.
        ``spikes`` is empty where no rule was given.
        """
        return {name: array.copy() for name, array in self._state().items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from the state of another preprocessor that was made with the same arguments, bit for bit.

        :raises PreprocessError: when it is not such a state; nothing is changed then
        """
        ours = self._state()
        if {name: (array.shape, array.dtype) for name, array in state.items()} != {
            name: (array.shape, array.dtype) for name, array in ours.items()
        }:
            raise PreprocessError("expected the state of a preprocessor of this region and run")
        index = int(state["index"])
        n_rows, newest, _ = state["place"].tolist()
        has_first = bool(np.isfinite(state["first"]).all())
        numbers = [state[name] for name in ours if name not in ("first", "previous", "spikes")]
        if not (
            -1 <= index < len(self._basis)
            and 0 <= n_rows <= index + 1
            and -1 <= newest < len(self._ages)
            and has_first == (n_rows > 0)
            and all(np.isfinite(array).all() for array in numbers)
        ):
            raise PreprocessError("expected the finite numbers of a preprocessor's state")
        self._index = index
        self._first = state["first"].copy() if has_first else None
        self._last = state["last"].copy()
        previous = state["previous"]
        self._previous = previous.copy() if np.isfinite(previous).all() else None
        if self._spikes:
            self._spikes.restore(state["spikes"])
        self._fit.restore(state)

    def _state(self) -> dict[str, NDArray[Any]]:
        return {
            "index": np.array(self._index, dtype=np.int64),
            "first": np.full_like(self._last, np.nan) if self._first is None else self._first,
            "last": self._last,
            "previous": np.full_like(self._last, np.nan) if self._previous is None else self._previous,
            "spikes": self._spikes.state() if self._spikes else np.empty(0),
            **self._fit.state(),
        }

    def _check(self, index: int, row: NDArray[Any]) -> None:
        if not self._index < index < len(self._basis):
            raise PreprocessError(
                f"expected a volume index from {self._index + 1} to {len(self._basis) - 1}, got {index}; "
                "volumes are pushed once and in order"
            )
        if row.shape != self._last.shape:
            raise PreprocessError(f"expected {self._last.size} voxels of the region, got shape {row.shape}")

    def _censor(self, reason: str) -> Pushed:
        self._fill(1)
        return Pushed(status="censored", repaired_voxels=0, reason=reason)

    def _spike(self, row: Floats, regressors: Floats) -> str:
        """Why a volume's row is censored as a spike; empty if it is none."""
        if self._spikes is None or self._first is None or self._fit.n_rows < self._needed:
            return ""
        residual = self._fit.innovation(regressors, row - self._first)
        variance = self._fit.variance()
        distance, change = rms_sd(residual, variance), rms_sd(row - self._last, variance)
        if not self._spikes.is_spike(distance, change):
            return ""
        return f"a spike: {distance:.1f} SD off the run so far, {change:.1f} SD off the last good volume"

    def _fill(self, n_volumes: int) -> None:
        """Repeat the last good row in place of missing or censored ones, if there was one."""
        if self._first is not None:
            for _ in range(min(n_volumes, len(self._ages))):
                self._fit.repeat()

    def _tsnr(self) -> float | None:
        if self._first is None or self._fit.n_rows < self._needed:
            return None
        n = self._fit.n_rows
        mean = self._first + self._fit.mean()
        sd = self._fit.sd() * math.sqrt((n - 1) / n)  # ddof 0, as nipype
        return float(np.median(np.abs(mean[sd > 0]) / sd[sd > 0])) if (sd > 0).any() else None

    def _accept(self, row: Floats, regressors: Floats) -> None:
        self._last = row
        is_first = self._first is None
        if self._first is None:
            self._first = row
        self._fit.add(regressors, row - self._first)
        if is_first:
            self._fill(len(self._ages) - 1)  # in place of volumes that were lost before it

    def _status(self) -> State:
        warm = self._index + 1 >= self._settings.warmup_volumes and self._fit.n_rows >= self._needed
        return "trusted" if warm else "warming"

    def _prior_z_scores(self, first: Floats) -> NDArray[np.float32]:
        """Z-scores [V, T] of the last T volumes with the help of the prior."""
        n, k = self._fit.n_rows, self._settings.prior_volumes
        mean = (n * self._fit.mean() + k * (self._prior_mean - first)) / (n + k)
        around_mean = self._fit.sum_squares() - 2 * n * mean * self._fit.mean() + n * mean**2
        variance = (np.maximum(around_mean, 0.0) + k * self._prior_variance) / (n + k)
        z = self._fit.recent(self._ages) - mean
        z = np.divide(z, np.sqrt(variance), out=np.zeros_like(z), where=variance > 0)
        return np.ascontiguousarray(z.T, dtype=np.float32)


def z_scored(rows: NDArray[Any], basis: Floats) -> NDArray[np.float32]:
    """Z-score a recorded run [n, V] as a whole, after its fit on ``basis`` [n, K] has been subtracted.

    The basis must hold a constant. SD with ddof 1; voxels that do not vary become 0.

    :returns: float32 [n, V]
    :raises PreprocessError: when a value is not finite, or there are not enough volumes for the basis
    """
    basis, _ = np.linalg.qr(basis)
    if len(rows) <= basis.shape[1]:
        raise PreprocessError(
            f"expected more than {basis.shape[1]} volumes for the drift basis, got {len(rows)}"
        )
    centred = rows.astype(np.float64)
    if not np.isfinite(centred).all():
        raise PreprocessError("expected finite values in a recorded run; censor or repair its volumes first")
    centred -= centred[0].copy()
    sum_squares = np.einsum("nv,nv->v", centred, centred)
    centred -= basis @ (basis.T @ centred)
    rss = np.einsum("nv,nv->v", centred, centred)
    varies = rss > FLAT * sum_squares
    centred *= np.sqrt(np.divide(len(rows) - 1, rss, out=np.zeros_like(rss), where=varies))
    return centred.astype(np.float32)


def causal_windows(
    rows: NDArray[Any],
    tr_s: float,
    settings: Preprocessing,
    prior: VoxelStatistics,
    window_volumes: int,
    ends: Sequence[int],
    drift_prior: DriftPrior | None = None,
) -> NDArray[np.float32]:
    """The windows that the runtime would have decoded at volumes ``ends`` of a recorded run [n, V].

    No volume is censored as a spike, so that every end has its window.

    :returns: float32 [len(ends), V, T], in the order of ``ends``
    :raises PreprocessError: when an end has no window before it, or lies beyond the run
    """
    n_volumes, n_voxels = rows.shape
    if any(not window_volumes - 1 <= end < n_volumes for end in ends):
        raise PreprocessError(
            f"expected window ends from {window_volumes - 1} to {n_volumes - 1}, got {sorted(ends)}"
        )
    stream = StreamingPreprocessor(
        np.ones((n_voxels, 1, 1), dtype=bool),
        n_volumes,
        tr_s,
        settings,
        prior,
        window_volumes,
        drift_prior=drift_prior,
    )
    places: dict[int, list[int]] = {}
    for place, end in enumerate(ends):
        places.setdefault(end, []).append(place)
    windows = np.empty((len(ends), n_voxels, window_volumes), dtype=np.float32)
    for index in range(max(ends, default=-1) + 1):
        stream.push_row(index, rows[index])
        if index in places:
            windows[places[index]] = stream.window()
    return windows


def _check_prior(n_voxels: int, *priors: NDArray[np.floating[Any]]) -> None:
    for prior in priors:
        if prior.shape != (n_voxels,) or not np.isfinite(prior).all():
            raise PreprocessError(
                f"expected a finite prior for each of the region's {n_voxels} voxels, got shape {prior.shape}"
            )
