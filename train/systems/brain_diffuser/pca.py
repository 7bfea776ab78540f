"""Principal components of a decoder's outputs, which reduce hundreds of thousands of numbers to hundreds.

A ridge regression is linear in its targets. Regressing on the leading components therefore gives the same map
as regressing on all outputs and projecting on these components: features -> r -> outputs, with two small
matrices instead of one that would take 80 GB at Versatile Diffusion's size.

Legend: m pictures, q outputs of one picture, r components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

Floats = NDArray[np.float32]
_BLOCK = 4096
_NEGLIGIBLE = 1e-6
"""A component with less than this share of the largest one's variance is a rounding error of zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """``mean + scores @ axes`` approximates the outputs."""

    mean: Floats
    """``[q]``"""
    sd: Floats
    """``[q]``, SD of the outputs"""
    axes: Floats
    """``[r, q]``, orthonormal"""
    scores: Floats
    """``[m, r]``, the largest first"""


def leading_components(outputs: NDArray[np.floating], weights: NDArray[np.float64], r: int) -> Components:
    """The leading components of outputs ``[m, q]``, in which row i counts ``weights[i]`` times.

    Outputs are read in blocks of columns; apart from the result, one matrix of ``min(m, q)`` squared is in
    memory. Fewer than ``r`` components are returned when the others are zero.
    """
    m, q = outputs.shape
    share = (weights / weights.sum())[:, None]
    mean, sd = np.empty(q, np.float32), np.empty(q, np.float32)
    for columns in _column_blocks(q):
        block = outputs[:, columns].astype(np.float64)
        mean[columns] = (share * block).sum(axis=0)
        sd[columns] = np.sqrt((share * (block - mean[columns]) ** 2).sum(axis=0))
    root = np.sqrt(share).astype(np.float32)

    def centred(columns: slice) -> Floats:
        part: Floats = outputs[:, columns].astype(np.float32) - mean[columns]
        return part

    if q <= m:
        rows = root * centred(slice(None))
        vectors = _leading_eigenvectors(rows.T @ rows, r)
        axes = np.ascontiguousarray(vectors.T)
        return Components(mean=mean, sd=sd, axes=axes, scores=centred(slice(None)) @ vectors)
    gram = np.zeros((m, m), dtype=np.float32)
    for columns in _column_blocks(q):
        block = root * centred(columns)
        gram += block @ block.T
    vectors = _leading_eigenvectors(gram, r)
    axes = np.empty((vectors.shape[1], q), dtype=np.float32)
    for columns in _column_blocks(q):
        axes[:, columns] = vectors.T @ (root * centred(columns))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    scores = np.zeros((m, len(axes)), dtype=np.float32)
    for columns in _column_blocks(q):
        scores += centred(columns) @ axes[:, columns].T
    return Components(mean=mean, sd=sd, axes=axes, scores=scores)


def _leading_eigenvectors(matrix: Floats, r: int) -> Floats:
    """Eigenvectors of a symmetric matrix as columns, in falling order of their eigenvalues."""
    n = len(matrix)
    values, vectors = eigh(matrix, subset_by_index=[max(n - r, 0), n - 1], overwrite_a=True)
    kept = values > _NEGLIGIBLE * values[-1]
    largest_first: Floats = vectors[:, kept][:, ::-1]
    return largest_first


def _column_blocks(q: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK, q)) for start in range(0, q, _BLOCK)]
