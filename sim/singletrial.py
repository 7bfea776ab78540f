"""Estimates single-trial responses (betas) from the recorded runs of one session. Pure.

The method follows NSD's ``betas_fithrf_GLMdenoise_RR`` (Allen et al. 2022, Methods; GLMsingle: Prince et al.
2022), for one session at a time and without the noise components of GLMdenoise:

1. Convert to percent signal change; project cosine drifts below 0.008 Hz out of data and designs.
2. For each voxel, choose the response of the library that explains most variance when all pictures evoke the
   same response (ON-OFF); the amplitude of that fit is the voxel's mean response.
3. Fit one regressor per trial by ridge regression towards the voxel's mean response.
4. Choose the session's penalty whose estimates are closest to the unpenalised estimates of the same picture
   in other runs, averaged over voxels. A session repeats about 80 pictures only, so penalties per voxel would
   vary between sessions, and with them the scale of the estimates. With responses of peak 1 the best penalty
   is noise variance over trial variance.

Offset and scale still differ between sessions: z-score the estimates within each session before use.

GLMsingle and fracridge would add numba and scikit-learn to the base install. Here one small SVD per response
and run suffices, because voxels with the same response share it and trials of different runs do not overlap.

Legend: T volumes of a run, N trials of a run or of the session, L lags, H responses of the library, V voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nsd import TR_S
from realtime.preprocessing.drift import cosine_basis
from sim.errors import SimError
from sim.haemodynamics import double_gamma

F64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

HIGH_PASS_HZ = 0.008
PENALTIES = (0.0, *(2.0 ** (half / 2) for half in range(-4, 13)))


def response_library() -> F64:
    """Return standard responses ``[L, H]`` to a picture of 3 s, peak 1, with times to peak of 4 to 8 s.

    Dispersion and undershoot are SPM's, not those of the simulated cortex.
    """
    peak_s = np.arange(4.0, 8.25, 0.5)
    library = double_gamma(
        peak_s, dispersion_s=1.0, undershoot_delay_s=10.0, undershoot_share=1 / 6, image_on_s=3.0
    )
    return np.asarray(library, dtype=np.float64)


def percent_signal_change(rows: npt.NDArray[np.float32]) -> F64:
    """Convert a run ``[T, V]`` to percent deviation from each voxel's mean; 0 if the mean is not above 0."""
    mean = rows.mean(axis=0, dtype=np.float64)
    return np.asarray(np.divide(100 * (rows - mean), mean, out=np.zeros(rows.shape), where=mean > 0))


@dataclass(frozen=True, kw_only=True)
class TrialModel:
    """The single-trial design ``[T, N]`` of a run as its SVD ``u @ diag(s) @ vt``."""

    u: F64
    s: F64
    vt: F64

    @staticmethod
    def of(design: F64) -> TrialModel:
        """Factorise ``design``."""
        u, s, vt = np.linalg.svd(design, full_matrices=False)
        return TrialModel(u=u, s=s, vt=vt)

    def coordinates(self, rows: F64, mean: F64) -> F64:
        """Project ``rows`` ``[T, V]``, minus a response ``mean`` ``[V]`` to every trial, to ``[N, V]``."""
        return np.asarray(self.u.T @ rows - np.outer(self.s * self.vt.sum(axis=1), mean))

    def deviations(self, coordinates: F64, penalty: float) -> F64:
        """Return ridge estimates ``[N, V]`` of each trial's deviation from the mean.

        Deviations that the run does not determine are 0, for example of a picture in its last volume.
        """
        is_seen = self.s > self.s[0] * max(len(self.u), len(self.s)) * np.finfo(np.float64).eps
        gain = np.divide(self.s, self.s**2 + penalty, out=np.zeros_like(self.s), where=is_seen)
        return np.asarray(self.vt.T @ (gain[:, None] * coordinates))


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Voxels that share a response, with the model and the projected data of each run."""

    voxels: npt.NDArray[np.intp]
    models: list[TrialModel]
    coordinates: list[F64]

    def deviations(self, penalty: float) -> F64:
        """Return deviations from the mean ``[N, V]`` for the trials of all runs."""
        by_run = zip(self.models, self.coordinates, strict=True)
        return np.concatenate([model.deviations(seen, penalty) for model, seen in by_run])


def drift_basis(n_volumes: int) -> F64:
    """Return an orthonormal basis ``[T, K]`` of the slow drifts that are removed."""
    return np.linalg.qr(cosine_basis(n_volumes, TR_S, HIGH_PASS_HZ))[0]


def trial_design(design: Ints, response: F64, drift: F64) -> F64:
    """Return one regressor per trial, ``response`` ``[L]`` from its onset on, without drift: ``[T, N]``."""
    lags = np.arange(len(design))[:, None] - np.flatnonzero(design)
    is_response = (lags >= 0) & (lags < len(response))
    regressors = np.where(is_response, response[np.clip(lags, 0, len(response) - 1)], 0.0)
    return _without(drift, regressors)


def single_trial_betas(series: Sequence[F64], designs: Sequence[Ints], library: F64) -> F64:
    """Estimate the response of each voxel to each trial of a session, ``[N, V]``, in order of runs.

    :param series: for each run ``[T, V]``, in any unit, which is also the unit of the estimates
    :param designs: for each run ``int64[T]``, 0 or the number of the picture that appears
    :param library: ``[L, H]``, candidate responses
    :raises SimError: when no picture is shown in two runs, so that no penalty can be chosen
    """
    first, second = _repeats(designs)
    drift = drift_basis(len(designs[0]))
    clean = [_without(drift, rows) for rows in series]
    chosen, mean = choose_responses(clean, designs, drift, library)
    groups = []
    for index in np.unique(chosen):
        voxels = np.flatnonzero(chosen == index)
        models = [TrialModel.of(trial_design(design, library[:, index], drift)) for design in designs]
        by_run = zip(models, clean, strict=True)
        seen = [model.coordinates(rows[:, voxels], mean[voxels]) for model, rows in by_run]
        groups.append(_Group(voxels=voxels, models=models, coordinates=seen))
    penalty = _choose_penalty(groups, first, second)
    n_trials = sum(int(np.count_nonzero(design)) for design in designs)
    betas = np.tile(mean, (n_trials, 1))
    for group in groups:
        betas[:, group.voxels] += group.deviations(penalty)
    return betas


def choose_responses(
    clean: Sequence[F64], designs: Sequence[Ints], drift: F64, library: F64
) -> tuple[npt.NDArray[np.intp], F64]:
    """Return each voxel's column of ``library`` and its mean response, by ON-OFF fits to drift-free runs."""
    products = np.zeros((library.shape[1], clean[0].shape[1]))
    powers = np.zeros((library.shape[1], 1))
    for rows, design in zip(clean, designs, strict=True):
        by_response = [trial_design(design, response, drift).sum(axis=1) for response in library.T]
        on_off = np.stack(by_response)
        products += on_off @ rows
        powers += (on_off**2).sum(axis=1, keepdims=True)
    chosen = np.argmax(products**2 / powers, axis=0)  # explained sum of squares
    voxels = np.arange(len(chosen))
    return chosen, products[chosen, voxels] / powers[chosen, 0]


def _without(drift: F64, rows: F64) -> F64:
    return np.asarray(rows - drift @ (drift.T @ rows))


def _repeats(designs: Sequence[Ints]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return all ordered pairs of trials that show the same picture in different runs."""
    pictures = np.concatenate([design[design > 0] for design in designs])
    run = np.repeat(np.arange(len(designs)), [np.count_nonzero(design) for design in designs])
    first, second = np.nonzero((pictures[:, None] == pictures) & (run[:, None] != run))
    if not first.size:
        raise SimError("expected pictures that are shown in two runs of the session, found none; add runs")
    return first, second


def _choose_penalty(
    groups: Sequence[_Group], first: npt.NDArray[np.intp], second: npt.NDArray[np.intp]
) -> float:
    """Return the penalty whose estimates are closest to unpenalised ones of the same picture in other runs.

    The unpenalised estimates are noisy but unbiased, and their noise is independent, so it favours no
    penalty. Each voxel's errors are relative to its unpenalised error, so that noisy voxels do not dominate.
    """
    losses = np.zeros(len(PENALTIES))
    for group in groups:
        target = group.deviations(0.0)[second]
        errors = np.stack(
            [((group.deviations(penalty)[first] - target) ** 2).sum(axis=0) for penalty in PENALTIES]
        )
        unpenalised = errors[0]
        losses += np.divide(errors, unpenalised, out=np.zeros_like(errors), where=unpenalised > 0).sum(axis=1)
    return float(PENALTIES[int(np.argmin(losses))])
