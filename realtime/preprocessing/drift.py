"""The slow drifts of a run: their basis, and what training runs say about their size.

Over the beginning of a run, slow cosines look alike, and like anything else that changes over some volumes. A
free fit takes much of what the newest pictures evoke for drift. But drifts have a usual size. With the prior
that the coefficient of cosine k is normal, of mean 0 and of the variance that it has in training runs, the
expected drift is a ridge fit. Its penalty is the ratio of the noise's variance to the drift's, which has no
unit and is one for all voxels.

A decoder is trained on windows of whole runs, from which the free fit is subtracted; that fit is to be
foretold. Over a whole run cosines are orthogonal, and there it is the ridge fit times ``1 + ratio``. If all
that is still to come is as the ridge fit expects, this holds at every volume; at the last it holds exactly.

Legend: K regressors: cosines and, last, a constant; n volumes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from realtime.bundle.spec import DriftPrior
from realtime.errors import PreprocessError
from realtime.preprocessing.least_squares import Shrinkage

Floats = NDArray[np.float64]


def cosine_basis(n_volumes: int, tr_s: float, high_pass_hz: float) -> Floats:
    """Slow drifts of a run: cosines (DCT-II) below ``high_pass_hz`` and, last, a constant; [n_volumes, K].

    Equal to nilearn's ``create_cosine_drift``, also when rounding decides the number of columns.

    :raises PreprocessError: when there is no volume, or the times are not positive
    """
    if n_volumes < 1 or not tr_s > 0 or not high_pass_hz > 0:
        raise PreprocessError(
            f"expected at least one volume, a positive TR and a positive high-pass frequency, "
            f"got {n_volumes} volumes, {tr_s} s and {high_pass_hz} Hz"
        )
    # Computed as in nilearn: 2 * 225 * 0.01 Hz * 4/3 s is 6, and rounding decides whether the sixth is in.
    step_s = (n_volumes - 1) * tr_s / (n_volumes - 1) if n_volumes > 1 else tr_s
    order = min(n_volumes - 1, int(np.floor(2 * n_volumes * high_pass_hz * step_s)))
    phase = np.pi / n_volumes * (np.arange(n_volumes) + 0.5)
    cosines = np.sqrt(2.0 / n_volumes) * np.cos(phase[:, None] * np.arange(1, order + 1))
    return np.hstack([cosines, np.ones((n_volumes, 1))])


def cosine_frequencies(n_volumes: int, tr_s: float, n_cosines: int) -> Floats:
    """Frequencies [n_cosines] in Hz of the first cosines of a run."""
    return np.arange(1, n_cosines + 1) / (2 * n_volumes * tr_s)


def shrinkage(basis: Floats, tr_s: float, prior: DriftPrior, n_confounds: int) -> Shrinkage:
    """How the fit of a run with ``basis`` [n, K] is penalised.

    Between the prior's frequencies the ratio is interpolated, beyond them it is that of the nearest one. The
    constant is free, since the level of a run says little about that of the next. So are the ``n_confounds``
    regressors before the basis, such as motion: no training run says how much they explain.
    """
    n_volumes, n_regressors = basis.shape
    frequencies = cosine_frequencies(n_volumes, tr_s, n_regressors - 1)
    ratio = np.exp(np.interp(np.log(frequencies), np.log(prior.frequencies_hz), np.log(prior.noise_to_drift)))
    ratio = np.concatenate([np.zeros(n_confounds), ratio, [0.0]])
    sum_squares = np.concatenate([np.ones(n_confounds), np.square(basis).sum(axis=0)])
    return Shrinkage(penalties=ratio * sum_squares, rescale=1 + ratio)
