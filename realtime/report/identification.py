"""Two-way identification, in both directions. Pure.

*By decode*: is a decoded frame more like the picture shown than like the other pictures? *By picture*: is a
shown picture more like its own decoded frame than like the others?

Legend: n trials, d features.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]
"""[n, d]"""
TIE = 1e-10
"""Correlations that differ by less are equal: rounding moves those of equal rows by some 1e-15, by other
amounts in other places of the table."""
Image = NDArray[np.uint8]
"""RGB [H, W, 3]"""

HOG_SIZE_PX = 64
CELL_PX = 8
N_ORIENTATIONS = 9


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """Mean over trials with a 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class Identification(msgspec.Struct, frozen=True, kw_only=True):
    """By decode: mean over trials with a bootstrap interval; None if there are fewer than two trials."""

    value: float | None
    low: float | None
    high: float | None
    chance: float = 0.5
    n_trials: int
    by_picture: Interval | None = None
    """The other direction; None also where an earlier version did not measure it."""


def correlations(true: Features, decoded: Features) -> NDArray[np.float64]:
    """Pearson correlation of every true row i with every decoded row j, ``[i, j]``; 0 for constant rows."""
    return _standardise(true) @ _standardise(decoded).T


def two_way(true: Features, decoded: Features) -> NDArray[np.float64]:
    """By decode: score of each trial j, ``[n]``, each decode against all pictures.

    It is the share of other i with corr(true_i, dec_j) < corr(true_j, dec_j), as in Brain-Diffuser; a tie, as
    with another showing of the same picture, does not count. Chance is 0.5.

    :raises ValueError: when the two differ in shape or hold fewer than two trials
    """
    if true.shape != decoded.shape or true.ndim != 2 or len(true) < 2:
        raise ValueError(f"expected two arrays [n >= 2, d], got {true.shape} and {decoded.shape}")
    table = correlations(true, decoded)
    below = table < np.diagonal(table) - TIE
    return np.asarray(below.sum(axis=0) / (len(true) - 1), dtype=np.float64)


def two_way_by_picture(true: Features, decoded: Features) -> NDArray[np.float64]:
    """By picture: score of each trial i, ``[n]``, each picture against all decodes.

    It is the share of other j with corr(true_i, dec_j) < corr(true_i, dec_i), as in the released code of the
    Dynadiff paper. Chance is 0.5.

    :raises ValueError: when the two differ in shape or hold fewer than two trials
    """
    return two_way(decoded, true)


def identification(
    true: Features, decoded: Features, *, n_resamples: int = 10_000, seed: int = 0
) -> Identification:
    """Two-way identification in both directions, with 95 % bootstrap intervals over trials."""
    n_trials = len(true)
    if n_trials < 2:
        return Identification(value=None, low=None, high=None, n_trials=n_trials)
    draws = np.random.default_rng(seed).integers(n_trials, size=(n_resamples, n_trials))
    found = _interval(two_way(true, decoded), draws)
    return Identification(
        value=found.value,
        low=found.low,
        high=found.high,
        n_trials=n_trials,
        by_picture=_interval(two_way_by_picture(true, decoded), draws),
    )


def _interval(scores: NDArray[np.float64], draws: NDArray[np.int64]) -> Interval:
    low, high = np.quantile(scores[draws].mean(axis=1), [0.025, 0.975])
    return Interval(value=float(scores.mean()), low=float(low), high=float(high))


def pixels(image: Image) -> NDArray[np.float64]:
    """The picture's values, ``[H * W * 3]`` in [0, 1]; the correlation of two pictures' is PixCorr."""
    return image.astype(np.float64).ravel() / 255.0


def pixcorr(true: Image, decoded: Image) -> float:
    """Pearson correlation of two pictures' pixels."""
    return float(correlations(pixels(true)[None], pixels(decoded)[None])[0, 0])


def hog(image: Image) -> NDArray[np.float64]:
    """Histograms of oriented gradients ``[1764]``: shape without colour.

    Dalal & Triggs 2005 on 64 px grey: 8 x 8 px cells, 9 unsigned orientations shared linearly between
    neighbouring bins, 2 x 2 cells a block, blocks scaled to unit length, clipped at 0.2 and scaled again.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if grey.shape != (HOG_SIZE_PX, HOG_SIZE_PX):
        grey = cv2.resize(grey, (HOG_SIZE_PX, HOG_SIZE_PX), interpolation=cv2.INTER_AREA)
    cells = _orientation_cells(grey.astype(np.float64))
    blocks = np.concatenate([cells[:-1, :-1], cells[:-1, 1:], cells[1:, :-1], cells[1:, 1:]], axis=2)
    return _unit(np.minimum(_unit(blocks), 0.2)).ravel()


def stack(features: Sequence[NDArray[np.float64]]) -> Features:
    """Rows of features as one array ``[n, d]``; ``[0, 0]`` without rows."""
    return np.stack(features) if features else np.zeros((0, 0))


def _standardise(rows: Features) -> Features:
    """Rows centred and of unit length, so that a dot product is a correlation; constant rows become 0."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    # Through rounding, the length of a constant row is not exactly 0 but some ulps of its values.
    flat = length <= 1e-12 * np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(flat, 0.0, centred / np.where(flat, 1.0, length))


def _orientation_cells(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gradient magnitude by cell and orientation, ``[rows, columns, 9]``."""
    down, right = np.gradient(grey)
    magnitude = np.hypot(down, right)
    bin_position = (np.arctan2(down, right) % np.pi) / np.pi * N_ORIENTATIONS - 0.5
    lower = np.floor(bin_position)
    share_of_upper = bin_position - lower
    votes = np.zeros((*grey.shape, N_ORIENTATIONS))
    row, column = np.indices(grey.shape)
    first = lower.astype(np.intp) % N_ORIENTATIONS
    votes[row, column, first] += magnitude * (1 - share_of_upper)
    votes[row, column, (first + 1) % N_ORIENTATIONS] += magnitude * share_of_upper
    n_cells = HOG_SIZE_PX // CELL_PX
    cells = votes.reshape(n_cells, CELL_PX, n_cells, CELL_PX, N_ORIENTATIONS)
    return np.asarray(cells.sum(axis=(1, 3)), dtype=np.float64)


def _unit(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every block scaled to unit length; one without any gradient stays near 0."""
    scaled: NDArray[np.float64] = blocks / np.sqrt(np.square(blocks).sum(axis=2, keepdims=True) + 1e-4)
    return scaled
