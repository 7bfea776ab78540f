"""The formulas of the paper's evaluation metrics, each a value per trial. Pure.

Two-way identification is that of :mod:`realtime.report.identification`.
:mod:`train.evaluation.results_table` lists the features of each metric. Where the paper (2.3) leaves a detail
open, the authors' evaluation code decides.

Legend: n trials, d features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from realtime.report import identification

Pictures = NDArray[np.uint8]
"""RGB [n, H, W, 3]"""
PerTrial = NDArray[np.float64]
"""[n]"""


def pixcorr(true: Pictures, decoded: Pictures) -> PerTrial:
    """Pearson correlation over all pixels and channels of a trial's two pictures; 0 where one is constant.

    :raises ValueError: the two differ in shape
    """
    _check(true, decoded, 4)
    return np.array([identification.pixcorr(*pair) for pair in zip(true, decoded, strict=True)])


def ssim(true: Pictures, decoded: Pictures) -> PerTrial:
    """Structural similarity of the luminances (Wang et al. 2004), averaged over the picture.

    ``(2 μx μy + c1)(2 σxy + c2) / ((μx² + μy² + c1)(σx² + σy² + c2))`` with c1 = 0.01², c2 = 0.03²; moments
    are the population's under a Gaussian window of SD 1.5 px, luminances in [0, 1].

    :raises ValueError: the two differ in shape, or a picture is smaller than the window's 11 px
    """
    _check(true, decoded, 4)
    return np.array(
        [
            structural_similarity(
                rgb2gray(one),
                rgb2gray(other),
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=1.0,
            )
            for one, other in zip(true, decoded, strict=True)
        ],
        dtype=np.float64,
    )


def two_way(true: NDArray[np.floating], decoded: NDArray[np.floating]) -> PerTrial:
    """Identification by decode from features ``[n, d]``, correlated in double precision."""
    return identification.two_way(true.astype(np.float64, copy=False), decoded.astype(np.float64, copy=False))


def two_way_by_picture(true: NDArray[np.floating], decoded: NDArray[np.floating]) -> PerTrial:
    """Identification by picture from features ``[n, d]``, correlated in double precision."""
    return two_way(decoded, true)


def correlation_distance(true: NDArray[np.floating], decoded: NDArray[np.floating]) -> PerTrial:
    """``1 - r``, r the Pearson correlation of a trial's two rows of features ``[n, d]``.

    It is 1 where a row is constant.

    :raises ValueError: the two differ in shape
    """
    _check(true, decoded, 2)
    table = identification.correlations(true.astype(np.float64), decoded.astype(np.float64))
    return 1.0 - np.diagonal(table)


def cosine_distance(true: NDArray[np.floating], decoded: NDArray[np.floating]) -> PerTrial:
    """``1 - cos`` of the angle between a trial's two embeddings ``[n, d]``: DreamSim (Fu et al. 2023, 4).

    :raises ValueError: the two differ in shape
    """
    _check(true, decoded, 2)
    one, other = true.astype(np.float64), decoded.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosine: PerTrial = (one * other).sum(axis=1) / lengths
    return 1.0 - cosine


def mean_iou(true: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> PerTrial:
    """Intersection over union of two semantic maps ``[n, pixels]``, averaged over the true map's classes.

    A class in the decoded map alone counts only by the pixels that it takes from others, as in the authors'
    evaluation.

    :raises ValueError: the two differ in shape
    """
    _check(true, decoded, 2)
    return np.array([_iou(*pair) for pair in zip(true, decoded, strict=True)])


def _iou(true: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float:
    shared = np.bincount(true[true == decoded], minlength=256)
    either = np.bincount(true, minlength=256) + np.bincount(decoded, minlength=256) - shared
    present = np.bincount(true, minlength=256) > 0
    return float(np.mean(shared[present] / either[present]))


def _check(true: NDArray[np.generic], decoded: NDArray[np.generic], ndim: int) -> None:
    if true.shape != decoded.shape or true.ndim != ndim:
        raise ValueError(
            f"expected two arrays of {ndim} axes and equal shape, got {true.shape}, {decoded.shape}"
        )
