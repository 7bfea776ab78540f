"""How far two results are apart: arrays of numbers, and pictures. Does not import torch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

IDENTICAL_DB = 100.0
"""PSNR reported for identical pictures, because JSON has no infinity."""


class Difference(NamedTuple):
    """The largest difference between two arrays, and its share of the largest number that is expected."""

    largest: float
    relative: float

    def or_worse(self, other: Difference | None) -> Difference:
        """The larger of the two, figure by figure; NaN counts as the largest."""
        if other is None:
            return self
        largest, share = (float(np.maximum(*pair)) for pair in zip(self, other, strict=True))
        return Difference(largest=largest, relative=share)


def difference(found: NDArray[Any], expected: NDArray[Any]) -> Difference:
    """The largest difference between two arrays of one shape.

    For 8-bit pictures the relative difference leaves out one level of 255, which rounding alone can change.
    """
    apart = float(np.abs(found.astype(np.float64) - expected).max())
    if expected.dtype == np.uint8:
        return Difference(largest=apart, relative=max(apart - 1, 0.0) / 255)
    largest = float(np.abs(expected).max())
    return Difference(largest=apart, relative=apart / largest if largest else apart)


def psnr_db(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures."""
    mean_square = float(np.mean((found.astype(np.float64) - expected) ** 2))
    return min(IDENTICAL_DB, 10 * math.log10(255**2 / mean_square)) if mean_square else IDENTICAL_DB
