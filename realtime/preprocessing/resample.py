"""A decoder's window from the volumes of a scanner: the last of them, or resampled in time. Pure, no I/O.

A decoder's window ends a fixed time after a picture's onset. Where the scanner has another TR, it ends
between two volumes. It is made once the second of them has come, so it ends up to one TR of the scanner
before the newest volume, by the same time for every volume: the delay that resampling adds. Its samples are
read off a cubic spline (not-a-knot) through the z-scores of the newest volumes. That is a fixed linear map of
these, so resampling has no state, and later volumes never change a window. It gives back every cubic, in
exact arithmetic.

A volume counts at the time when it begins. Detrending and z-scoring come before it, at the scanner's TR.

Legend: V voxels of the region, T samples of a window at the decoder's TR, n volumes that it is made of.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

from realtime.bundle.match import delay_at
from realtime.bundle.spec import Window
from realtime.preprocessing.least_squares import Floats

_BEFORE = 2
"""Volumes before those around a window's samples; through them the spline is a spline at its begin too."""
_CUBIC = 4
"""Fewest points of a cubic spline."""
_ROUNDING_VOLUMES = 1e-6


class ScannerWindow:
    """The window of a decoder, in volumes of the scanner.

    :param tr_s: the decoder's TR
    :param resampled_from_s: the scanner's TR where it is another; None: windows are not resampled
    """

    def __init__(self, window: Window, tr_s: float, resampled_from_s: float | None = None) -> None:
        self.delay_volumes = window.delay_volumes
        """From a picture's onset to the last volume."""
        self.length_volumes = window.length_volumes
        """Volumes that the window is made of, n."""
        self._weights: Floats | None = None
        if resampled_from_s is not None:
            self.delay_volumes, behind_s = delay_at(window, tr_s, resampled_from_s)
            self._weights = spline_weights(window.length_volumes, tr_s, resampled_from_s, behind_s)
            self.length_volumes = self._weights.shape[1]

    def of(self, z_scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The window [V, T] that ends with z-scores [V, n or more]."""
        newest = z_scores[:, -self.length_volumes :]
        if self._weights is None:
            return np.ascontiguousarray(newest)
        # Not a matrix product: the order in which BLAS adds depends on the machine.
        window: NDArray[np.float64] = np.einsum("vn,tn->vt", newest, self._weights)
        return window.astype(np.float32)


def spline_weights(n_samples: int, tr_s: float, scanner_tr_s: float, behind_s: float) -> Floats:
    """Weights [T, n] of the scanner's newest n volumes in samples that are ``tr_s`` apart.

    :param behind_s: by how much the last sample is before the newest volume
    """
    ages = (behind_s + tr_s * np.arange(n_samples - 1, -1, -1)) / scanner_tr_s
    n_volumes = max(math.ceil(ages[0] - _ROUNDING_VOLUMES) + 1 + _BEFORE, _CUBIC)
    spline = make_interp_spline(np.arange(n_volumes), np.eye(n_volumes), k=3)
    return np.asarray(spline(n_volumes - 1 - ages), dtype=np.float64)
