"""The haemodynamic response to a picture, used by the forward model and the estimation of betas."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats

from nsd import TR_S

N_RESPONSE_VOLUMES = 25  # 33 s, which includes the undershoot
_FINE_S = 0.05


def double_gamma(
    peak_s: npt.NDArray[np.floating[Any]],
    *,
    dispersion_s: float,
    undershoot_delay_s: float,
    undershoot_share: float,
    image_on_s: float,
) -> npt.NDArray[np.floating[Any]]:
    """Return responses ``[25, N]`` at each volume after onset to a picture shown for ``image_on_s``, peak 1.

    The response is the difference of two gamma densities (Friston et al. 1998), convolved with the picture's
    boxcar. Their modes are ``peak_s`` ``[N]`` and ``peak_s + undershoot_delay_s``.
    """
    fine_s = np.arange(0, N_RESPONSE_VOLUMES * TR_S, _FINE_S)[:, None]
    main = scipy.stats.gamma.pdf(fine_s, peak_s / dispersion_s + 1, scale=dispersion_s)
    late_peak_s = peak_s + undershoot_delay_s
    late = scipy.stats.gamma.pdf(fine_s, late_peak_s / dispersion_s + 1, scale=dispersion_s)
    cumulative = np.cumsum(main - undershoot_share * late, axis=0)
    on = round(image_on_s / _FINE_S)
    boxcar = cumulative.copy()
    boxcar[on:] -= cumulative[:-on]
    sampled = boxcar[np.round(np.arange(N_RESPONSE_VOLUMES) * TR_S / _FINE_S).astype(np.int64)]
    return np.asarray(sampled / boxcar.max(axis=0))
