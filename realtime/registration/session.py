"""How the head lies in this session, as compared with the session that the decoder was made in. Pure.

Coils shine unevenly, and lie otherwise in each session. So both reference volumes are taken in units of the
brightness around each voxel. They are smoothed and thinned to three grids. The search starts from scanner
coordinates and from the heads' centres of mass, each straight and turned about each axis. All starts are
fitted on the coarsest grid, and the best go on to the next. On the finest grid only detail is compared.

A fit can look good and be wrong: any two heads are egg-shaped. So the similarity is that of the detail inside
the head, without its coarse shape and its rim. There, another person's brain differs.

Legend: a volume is [x, y, z].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from realtime.errors import RegistrationError
from realtime.registration.align import (
    BRIGHT,
    DARK,
    MARGIN_VOXELS,
    SD_OF_MAD,
    Fit,
    Mask,
    Template,
    Vector,
    correlation,
    head,
)
from realtime.registration.displacement import rms_displacement
from realtime.registration.rigid import Floats, Matrix, RigidParameters, as_rigid
from realtime.registration.splines import (
    Volume,
    blurred,
    coefficients,
    sample,
    transformed,
    voxels_of,
    with_contrast,
)


class _Level(NamedTuple):
    """One of the grids that the search goes through."""

    spacing_mm: float
    """Its volumes are smoothed by half of this (SD)."""
    n_points: int
    until_mm: float
    n_best: int
    """How many fits go on from it, and after the last to the comparison of detail."""
    margin_voxels: float = MARGIN_VOXELS
    is_detail: bool = False


LEVELS = (
    _Level(10.0, 1_500, 0.5, n_best=4),
    _Level(5.0, 5_000, 0.1, n_best=3),
    _Level(2.5, 20_000, 0.005, n_best=2, margin_voxels=4.0, is_detail=True),
)
ENOUGH_SEEN = 0.5
"""Share of the points in the field of view below which a fit promises less."""
SAME_MM = 2.0
"""Fits that differ by less are one."""
TURN_RAD = 0.25
"""Of the starts that are turned."""
AROUND_MM, FLOOR = 15.0, 0.2
"""SD of what is around a voxel, and what is added to its brightness, as a share of the head's."""
COARSE_MM, DETAIL_MM = 5.0, 2.0
"""SDs: detail is what smoothing by the first takes away; noise is what smoothing by the second does."""
RIM_MM = 12.0
LEAST_VOXELS, MOST_VOXELS = 100, 20_000
"""Inside the head, that are compared."""
MOST_SD = 3.0
"""Detail is cut off at so many SDs: vessels and artefacts are far brighter than folds."""
LEAST_SIMILARITY, LEAST_OVERLAP = 0.6, 0.7


class SessionRegistration(NamedTuple):
    """How a session's head lies to the decoder's."""

    matrix: Matrix
    """[4, 4], from positions in the decoder's reference to those in the session's, in mm."""
    similarity: float
    """Correlation of the detail inside the head, at most 1."""
    overlap: float
    """Share of the inside of the decoder's head that is in the session's field of view."""
    parameters: RigidParameters
    """The same as ``matrix``, about the centre of the decoder's grid."""


class _Image:
    """A volume, and its smoothed and thinned copies."""

    def __init__(self, volume: Floats, affine: ArrayLike, name: str) -> None:
        try:
            self.volume = with_contrast(volume)
            self.volume = self.volume - np.float32(np.quantile(self.volume, DARK))
        except RegistrationError as error:
            raise RegistrationError(f"{name}: {error}") from None
        self.affine = np.asarray(affine, float)
        self.sides_mm = np.linalg.norm(self.affine[:3, :3], axis=0)
        self.centre_mm = self.affine[:3, :3] @ ((np.array(self.volume.shape) - 1) / 2) + self.affine[:3, 3]
        around = np.maximum(self.smoothed(AROUND_MM), 0)
        bright = np.quantile(around, BRIGHT)
        if bright <= 0:
            raise RegistrationError(f"{name}: expected a head, found nothing bright; look at the images")
        self._unit = around + FLOOR * bright

    def smoothed(self, sd_mm: float) -> Volume:
        return blurred(self.volume, sd_mm / self.sides_mm)

    def evened(self, sd_mm: float, is_detail: bool) -> Volume:
        """Return a smoothed copy, or its detail, in units of the brightness around each voxel."""
        copy = self.smoothed(sd_mm)
        if is_detail:
            copy -= self.smoothed(COARSE_MM)
        return np.asarray(copy / self._unit, np.float32)

    def grid(self, level: _Level) -> tuple[Volume, Matrix, Mask]:
        """Return the copy for a level, its affine, and the mask of its head."""
        steps = [
            max(1, min(round(level.spacing_mm / side), n // 8))
            for side, n in zip(self.sides_mm.tolist(), self.volume.shape, strict=True)
        ]
        sparse = tuple(slice(None, None, step) for step in steps)
        thinned = self.evened(level.spacing_mm / 2, level.is_detail)[sparse]
        inside = head(self.smoothed(level.spacing_mm / 2))[sparse]
        return np.ascontiguousarray(thinned), self.affine @ np.diag([*steps, 1.0]), inside

    def centre_of_mass(self) -> NDArray[np.float64]:
        weights = self.smoothed(4.0)
        weights = np.where(head(weights), weights, 0)
        centre = np.array(ndimage.center_of_mass(weights))
        return np.asarray(self.affine[:3, :3] @ centre + self.affine[:3, 3])


def register_session(
    moving: Floats,
    moving_affine: ArrayLike,
    fixed: Floats,
    fixed_affine: ArrayLike,
    initial: ArrayLike | None = None,
) -> SessionRegistration:
    """Return how the session's reference volume (``moving``) lies to the decoder's (``fixed``).

    ``initial`` [4, 4] is where the search starts instead, in the direction of the result. Raises
    :class:`RegistrationError` where the volumes show no head, or not the same one.
    """
    session = _Image(moving, moving_affine, "the session's reference volume")
    decoder = _Image(fixed, fixed_affine, "the decoder's reference volume")
    starts = [as_rigid(initial)] if initial is not None else list(_starts(session, decoder))
    for level in LEVELS:
        template = Template(*decoder.grid(level), decoder.centre_mm, level.n_points)
        spline, affine, _ = session.grid(level)
        fits = [template.fit(spline, affine, start, level.until_mm, level.margin_voxels) for start in starts]
        starts = [fit.matrix for fit in _best_distinct(fits, level.n_best, decoder.centre_mm)]
    similarity, overlap, matrix = max(
        ((*_judged(session, decoder, matrix), matrix) for matrix in starts), key=lambda judged: judged[0]
    )
    _accept(similarity, overlap)
    parameters = RigidParameters.of(matrix, decoder.centre_mm)
    return SessionRegistration(matrix, similarity, overlap, parameters)


def _starts(session: _Image, decoder: _Image) -> Iterator[Matrix]:
    shift = np.eye(4)
    centre = decoder.centre_of_mass()
    shift[:3, 3] = session.centre_of_mass() - centre
    turns = [RigidParameters()]
    for axis, sign in itertools.product((3, 4, 5), (1, -1)):
        turns.append(RigidParameters(*(sign * TURN_RAD if k == axis else 0.0 for k in range(6))))
    for first, turn in itertools.product((np.eye(4), shift), turns):
        yield first @ turn.matrix(centre)


def _best_distinct(fits: list[Fit], n_best: int, centre_mm: Matrix) -> list[Fit]:
    """Return the fits that promise most; of those that agree, one."""
    best: list[Fit] = []
    for fit in sorted(fits, key=_promise, reverse=True):
        if all(rms_displacement(other.matrix, fit.matrix, centre_mm) > SAME_MM for other in best):
            best.append(fit)
    return best[:n_best]


def _promise(fit: Fit) -> float:
    return fit.similarity * min(1.0, fit.overlap / ENOUGH_SEEN)


def _judged(session: _Image, decoder: _Image, matrix: Matrix) -> tuple[float, float]:
    """Return the correlation of the detail inside the decoder's head, and the share of it that is seen."""
    inside = head(decoder.smoothed(DETAIL_MM))
    inside = ndimage.distance_transform_edt(inside, decoder.sides_mm) > RIM_MM
    voxels = np.stack(np.nonzero(inside)).astype(np.float64)
    voxels = voxels[:, :: max(1, voxels.shape[1] // MOST_VOXELS)]
    to_session = voxels_of(session.affine) @ matrix @ decoder.affine
    theirs = sample(coefficients(session.evened(DETAIL_MM, is_detail=True)), transformed(to_session, voxels))
    ours = sample(coefficients(decoder.evened(DETAIL_MM, is_detail=True)), voxels)
    seen = np.isfinite(theirs)
    if np.count_nonzero(seen) < LEAST_VOXELS:
        return 0.0, 0.0
    first, second = _cut(ours[seen]), _cut(theirs[seen])
    return correlation(first, second, np.ones_like(first)), float(np.mean(seen))


def _cut(detail: Vector) -> Vector:
    most = MOST_SD * SD_OF_MAD * float(np.median(np.abs(detail)))
    return np.clip(detail, -most, most)


def _accept(similarity: float, overlap: float) -> None:
    what_to_do = (
        "look whether this is the decoder's person and whether the head is whole in the image; if so, "
        "give a better start with --initial: a rigid matrix from the decoder's to the session's coordinates, "
        "in mm"
    )
    if overlap < LEAST_OVERLAP:
        raise RegistrationError(
            f"expected at least {LEAST_OVERLAP:.0%} of the decoder's head in the session's field of view, "
            f"found {overlap:.0%}; {what_to_do}"
        )
    if similarity < LEAST_SIMILARITY:
        raise RegistrationError(
            "the session's reference volume does not fit the decoder's: expected a similarity of at least "
            f"{LEAST_SIMILARITY}, got {similarity:.2f}; {what_to_do}"
        )
