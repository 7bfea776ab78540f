"""The head around the simulated brain: fluid, skull, scalp, eyes, nose and neck.

A registration holds on to it: it has edges where tissues meet, and no symmetry. It depends on seed, subject
and the cortex's settings only.

Legend: a lattice is the grid of the corrected series, extended on all sides by whole voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sim.anatomy import Anatomy
from sim.settings import CortexSettings

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_FLUID, _SKULL, _SCALP, _MUSCLE, _EYE = 1400.0, 120.0, 900.0, 500.0, 2500.0
"""Intensities in scanner units, about as in an echo-planar image."""
_AIR = 1.0
"""Less is air."""
_FLUID_MM, _SKULL_MM, _SCALP_MM = 1.6, 2.6, 3.4
"""Thickness of the layers outside the brain, from within."""
_EDGE_MM = 0.5
"""Half width of an edge between tissues, so that positions between voxels matter."""
_ROUGHNESS = 0.35
"""By which share thickness and intensity differ from place to place."""
PADDING_MM = 16.0
"""By how much the lattice exceeds the brain's grid at least; all of the head is within."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head on its lattice, in which the brain is to be filled in.

    ``around`` float32 ``[x, y, z]``: everything but the brain; ``brain`` bool ``[x, y, z]``: voxels of the
    brain; ``is_near`` bool ``[x, y, z]``: voxels of the head and around it, beyond which there is air;
    ``affine`` float64 ``[4, 4]``: lattice to mm, in the corrected series' coordinates.
    """

    around: F32
    brain: npt.NDArray[np.bool_]
    is_near: npt.NDArray[np.bool_]
    affine: F64

    def with_brain(self, values: F32) -> F32:
        """Return the head with the values of the brain's voxels, ``[B]`` in C order of the grid."""
        whole = self.around.copy()
        whole[self.brain] = values
        return whole


def build_head(settings: CortexSettings, anatomy: Anatomy, seed: int, subject: int) -> Head:
    """Build the head of a subject around its brain."""
    n_pad = int(np.ceil(PADDING_MM / settings.voxel_mm))
    affine = anatomy.affine.copy()
    affine[:3, 3] -= n_pad * settings.voxel_mm
    shape = tuple(n + 2 * n_pad for n in settings.grid)
    axes = [np.arange(n) * settings.voxel_mm + first for n, first in zip(shape, affine[:3, 3], strict=True)]
    position = np.stack(np.meshgrid(*axes, indexing="ij"))  # [3, x, y, z], mm
    radii = np.array(settings.grid) * settings.voxel_mm / 2
    rng = np.random.default_rng([seed, subject, 5])
    around = _tissues(position, radii, rng)
    brain = np.pad(anatomy.brain, n_pad)
    is_near = ndimage.binary_dilation((around > _AIR) | brain, iterations=2)
    return Head(around=np.asarray(around, dtype=np.float32), brain=brain, is_near=is_near, affine=affine)


def _tissues(position: F64, radii: F64, rng: np.random.Generator) -> F64:
    """Return intensities at ``position`` ``[3, x, y, z]``, around a brain with ``radii`` in mm."""
    unit = position / radii[:, None, None, None]
    elliptic = np.sqrt((unit**2).sum(axis=0))
    distance_mm = np.sqrt((position**2).sum(axis=0))
    depth_mm = distance_mm * (1 - 1 / np.maximum(elliptic, 1e-6))  # outside the brain's surface
    rough = [1 + _ROUGHNESS * _waves(position, radii.max(), rng) for _ in range(4)]
    skull_at = _FLUID_MM * rough[0]
    scalp_at = skull_at + _SKULL_MM * rough[1]
    air_at = scalp_at + _SCALP_MM * rough[2]
    head = np.full(depth_mm.shape, _FLUID)
    head += (_SKULL - _FLUID) * _beyond(depth_mm - skull_at)
    head += (_SCALP * rough[3] - _SKULL) * _beyond(depth_mm - scalp_at)
    head *= 1 - _beyond(depth_mm - air_at)
    # Balls that stick out, in units of the brain's radii: they make front, sides and top.
    parts = [(_EYE, (side * 0.45, 1.05, -0.35), 0.24) for side in (-1, 1)]
    parts += [(_SCALP, (0.05, 1.3, -0.55), 0.22), (_MUSCLE, (0.0, -0.75, -1.15), 0.5)]
    parts += [(_MUSCLE * 1.4, (1.2, 0.3, -0.6), 0.3), (_SCALP * 1.3, (-1.15, -0.3, 0.55), 0.25)]
    outside = _beyond(depth_mm - skull_at)
    for intensity, place, size in parts:
        apart_mm = np.sqrt(((unit - np.reshape(place, (3, 1, 1, 1))) ** 2).sum(axis=0)) * radii.mean()
        share = (1 - _beyond(apart_mm - size * radii.mean())) * outside
        head += (intensity - head) * share
    return np.asarray(head)


def _beyond(excess_mm: F64) -> F64:
    """Return 0 inside a surface and 1 outside, with a smooth edge."""
    return np.asarray(0.5 + 0.5 * np.tanh(excess_mm / _EDGE_MM))


def _waves(position: F64, radius_mm: float, rng: np.random.Generator) -> F64:
    """Return a smooth random field between about -1 and 1, a few periods across the head."""
    directions = rng.normal(0, 2.2 / radius_mm, (5, 3))
    phases = rng.uniform(0, 2 * np.pi, 5)
    angles = np.tensordot(directions, position, axes=1) + phases[:, None, None, None]
    return np.asarray(np.sin(angles).mean(axis=0) * 1.6)
