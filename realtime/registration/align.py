"""The fit: the rigid transform by which one volume looks like another.

Inverse-compositional Gauss-Newton (Baker and Matthews 2004, "Lucas-Kanade 20 years on"). At points of the
reference, where its intensity changes steeply with position, the volume is described as ::

    volume(T p)  =  a reference(p) + b + a (how reference(p) changes with a small move) . move

in the least-squares sense. What multiplies a, b and the move belongs to the reference and is computed once.
T is then corrected by the inverse of the move, until moves are too small to matter. a and b follow the
scanner's gain, which drifts. Points that do not fit count less (Cauchy's weights): eyes that turn, a hand
beside the head, folds of the image that are bright in one volume only.

Legend: N points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from realtime.errors import RegistrationError
from realtime.registration.rigid import Matrix, RigidParameters, inverse
from realtime.registration.splines import Positions, Volume, sample, transformed, voxels_of

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]

MOST_STEPS = 30
MARGIN_VOXELS = 2.0
"""At the edge of the field of view, smoothing mixes the head with its mirror image: no point there counts."""
LEVER_MM = 50.0
"""Where a turn is measured in mm."""
_LEAST_SEEN = 0.1
"""Share of the points in the field of view below which there is nothing to fit."""
_WORST_CONDITION = 1e10
_CAUCHY, SD_OF_MAD = 2.385, 1.4826
"""Cauchy's weights with 95 % efficiency under normal noise; SD of normal numbers over their median absolute
deviation."""
_HEAD = 0.2
"""The head is what is brighter than this share of the way from dark to bright."""
DARK, BRIGHT = 0.01, 0.98
"""The quantiles that count as dark and bright; some images have an offset."""


class Fit(NamedTuple):
    """How a volume lies to the reference."""

    matrix: Matrix
    """[4, 4], from the reference's positions to the volume's."""
    steps: int
    similarity: float
    """Correlation of the volume with the reference at the points, both smoothed."""
    overlap: float
    """Share of the points that are in the volume's field of view."""


class Template:
    """Points of a reference, and how its values there change with a small move."""

    def __init__(
        self, spline: Volume, affine: Matrix, inside: Mask, centre_mm: Matrix, n_points: int
    ) -> None:
        """Choose points of a reference inside a mask; turns are about a centre."""
        voxels = _steepest(spline, affine, inside, n_points)
        self.positions: Positions = transformed(affine, voxels)
        self._centre = np.asarray(centre_mm, float)
        values = sample(spline, voxels)
        gradient = _gradient(spline, affine, voxels)
        offset = self.positions - self._centre[:, None]
        turned = np.cross(offset, gradient, axis=0) / LEVER_MM
        design = np.concatenate([gradient, turned, values[None], np.ones_like(values)[None]])
        self._scale = np.sqrt(np.add.reduce(design**2, axis=1))
        self._design = design / np.where(self._scale > 0, self._scale, 1)[:, None]
        self._values = values
        if np.linalg.cond(_normal(self._design, self._design)) > _WORST_CONDITION:
            raise RegistrationError(
                "expected a head in the reference volume, found a shape that looks the same after a shift or "
                "a turn; look at the images"
            )

    def fit(
        self, spline: Volume, affine: Matrix, start: Matrix, until_mm: float, margin: float = MARGIN_VOXELS
    ) -> Fit:
        """Return how a volume lies to the reference, sought from a start."""
        to_voxels = voxels_of(affine)
        matrix, move, weights = start, None, np.ones_like(self._values)
        for step in range(MOST_STEPS + 1):
            values = sample(spline, transformed(to_voxels @ matrix, self.positions), margin)
            seen = np.isfinite(values)
            overlap = float(np.count_nonzero(seen)) / seen.size
            values, weights = np.where(seen, values, 0), weights * seen
            done = step == MOST_STEPS or (move is not None and float(np.abs(move).sum()) < until_mm)
            if done or overlap < _LEAST_SEEN:
                break
            move, weights = self._move(values, weights)
            if move is None:
                break
            delta = RigidParameters(*move[:3], *(move[3:] / LEVER_MM)).matrix(self._centre)
            matrix = matrix @ inverse(delta)
        return Fit(matrix, step, correlation(values, self._values, weights), overlap)

    def _move(self, values: Vector, weights: Vector) -> tuple[Vector | None, Vector]:
        """Return the move [6] in mm that explains the values best, or None, and new weights."""
        weighted = self._design * weights
        try:
            found = np.linalg.solve(_normal(weighted, self._design), np.add.reduce(weighted * values, axis=1))
        except np.linalg.LinAlgError:
            return None, weights
        misfit = np.abs(values - np.add.reduce(found[:, None] * self._design, axis=0))
        spread = SD_OF_MAD * float(np.median(misfit[weights > 0]))
        *move, gain, _ = found / self._scale
        new_weights = 1 / (1 + (misfit / (_CAUCHY * spread)) ** 2) if spread > 0 else np.ones_like(misfit)
        return (np.array(move) / gain if gain > 0 else None), new_weights


def _normal(weighted: Vector, design: Vector) -> Vector:
    """Return the normal matrix, without BLAS, which would share the sums among threads."""
    normal = np.empty((len(design), len(design)))
    for i, row in enumerate(weighted):
        normal[i, i:] = normal[i:, i] = np.add.reduce(row * design[i:], axis=1)
    return normal


def _steepest(spline: Volume, affine: Matrix, inside: Mask, n_points: int) -> Positions:
    """Return the positions in voxels [3, N] inside a mask where intensity changes steeply.

    Of the four times as many steepest, every fourth, so that they lie all over the head.
    """
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    slopes = [
        np.gradient(spline, axis=axis) / side if n > 1 else 0 * spline
        for axis, (side, n) in enumerate(zip(sides, spline.shape, strict=True))
    ]
    steepness = np.sqrt(sum(slope**2 for slope in slopes))
    for axis in range(3):
        inside = inside & _in_from_edge(spline.shape, axis)
    candidates = np.flatnonzero(inside)
    if candidates.size < 100:
        raise RegistrationError(
            f"expected a head in the reference volume, found {candidates.size} bright voxels away from the "
            "edges; look at the images"
        )
    order = np.argsort(-steepness.ravel()[candidates], kind="stable")
    chosen = np.sort(candidates[order[: 4 * n_points]])
    chosen = chosen[:: max(1, chosen.size // n_points)]
    return np.stack(np.unravel_index(chosen, spline.shape)).astype(np.float64)


def head(volume: Volume) -> Mask:
    """Return the mask of the largest part that is bright and in one piece, grown by one voxel."""
    dark, bright = np.quantile(volume, (DARK, BRIGHT))
    parts, n_parts = ndimage.label(volume > dark + _HEAD * (bright - dark))
    if n_parts > 1:
        sizes = np.bincount(parts.ravel())
        parts = parts == 1 + np.argmax(sizes[1:])
    return np.asarray(ndimage.binary_dilation(parts))


def _in_from_edge(shape: tuple[int, ...], axis: int) -> NDArray[np.bool_]:
    n = shape[axis]
    index = np.arange(n).reshape([-1 if other == axis else 1 for other in range(3)])
    edge = min(MARGIN_VOXELS, n / 8)
    return np.asarray((index >= edge) & (index <= n - 1 - edge))


def _gradient(spline: Volume, affine: Matrix, voxels: Positions) -> Positions:
    """Return the exact derivative [3, N] of the spline by position in mm, at whole voxels."""
    index = tuple(voxels.astype(int))
    per_voxel = []
    for axis in range(3):
        weights = [np.array([1, 4, 1]) / 6] * 3
        weights[axis] = np.array([-1, 0, 1]) / 2
        slope = spline
        for other, w in enumerate(weights):
            slope = ndimage.correlate1d(slope, w, other, output=np.float32, mode="mirror")
        per_voxel.append(slope[index].astype(np.float64))
    inverse_affine = voxels_of(affine)[:3, :3]
    return np.stack([sum(inverse_affine[k, j] * per_voxel[k] for k in range(3)) for j in range(3)])


def correlation(first: Vector, second: Vector, weights: Vector) -> float:
    """Return the weighted correlation of two rows of numbers; 0 where one does not vary."""
    total = np.add.reduce(weights)
    if total <= 0:
        return 0.0
    a = first - np.add.reduce(weights * first) / total
    b = second - np.add.reduce(weights * second) / total
    norm = np.sqrt(np.add.reduce(weights * a * a) * np.add.reduce(weights * b * b))
    return float(np.add.reduce(weights * a * b) / norm) if norm > 0 else 0.0
