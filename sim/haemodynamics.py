"""The haemodynamic response to a picture, used by the forward model and the estimation of betas."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats

from nsd import TR_S
from sim.settings import NaturalSettings

N_RESPONSE_VOLUMES = 25  # 33 s, which includes the undershoot
_FINE_S = 0.05

PerResponse = float | npt.NDArray[np.floating[Any]]
"""One value for all responses, or one for each, ``[N]``."""


def double_gamma(
    peak_s: npt.NDArray[np.floating[Any]],
    *,
    dispersion_s: PerResponse,
    undershoot_delay_s: float,
    undershoot_share: PerResponse,
    image_on_s: float,
    onset_s: PerResponse = 0.0,
) -> npt.NDArray[np.floating[Any]]:
    """Return responses ``[25, N]`` at each volume after onset to a picture shown for ``image_on_s``, peak 1.

    The response is the difference of two gamma densities (Friston et al. 1998), convolved with the picture's
    boxcar. Their modes are ``peak_s`` ``[N]`` and ``peak_s + undershoot_delay_s`` after ``onset_s``.
    """
    fine_s = np.arange(0, N_RESPONSE_VOLUMES * TR_S, _FINE_S)[:, None] - onset_s
    main = scipy.stats.gamma.pdf(fine_s, peak_s / dispersion_s + 1, scale=dispersion_s)
    late_peak_s = peak_s + undershoot_delay_s
    late = scipy.stats.gamma.pdf(fine_s, late_peak_s / dispersion_s + 1, scale=dispersion_s)
    cumulative = np.cumsum(main - undershoot_share * late, axis=0)
    on = round(image_on_s / _FINE_S)
    boxcar = cumulative.copy()
    boxcar[on:] -= cumulative[:-on]
    sampled = boxcar[np.round(np.arange(N_RESPONSE_VOLUMES) * TR_S / _FINE_S).astype(np.int64)]
    return np.asarray(sampled / boxcar.max(axis=0))


def draw_responses(
    settings: NaturalSettings, n_voxels: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Draw each voxel's response ``[25, V]`` from a library, and when it begins.

    From the first to the last response of the library, time to peak and width grow, and the undershoot falls.
    """
    place = rng.integers(settings.library_size, size=n_voxels) / max(settings.library_size - 1, 1)

    def along(ends: tuple[float, float]) -> npt.NDArray[np.float64]:
        return np.asarray(ends[0] + (ends[1] - ends[0]) * place)

    responses = double_gamma(
        along(settings.peak_s),
        dispersion_s=along(settings.dispersion_s),
        undershoot_delay_s=settings.undershoot_delay_s,
        undershoot_share=along(settings.undershoot_share),
        image_on_s=settings.image_on_s,
        onset_s=rng.uniform(*settings.onset_s, n_voxels),
    )
    return responses.astype(np.float32)
