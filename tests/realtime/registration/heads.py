"""Heads made of formulas: known at every position, so that any grid shows them without interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Volume = NDArray[np.float32]
RADII_MM = np.array([68.0, 85.0, 62.0])
GRID = (38, 46, 36)
SIDE_MM = 4.2
N_FOLDS = 24


class Head:
    """A person's head: an egg with a soft rim, dark ventricles, and folds that are this person's own."""

    def __init__(self, person: int) -> None:
        rng = np.random.default_rng(person)
        ways = rng.standard_normal((N_FOLDS, 3))
        wavelengths_mm = rng.uniform(14, 45, N_FOLDS)
        self._waves = 2 * np.pi * ways / np.linalg.norm(ways, axis=1)[:, None] / wavelengths_mm[:, None]
        self._phases = rng.uniform(0, 2 * np.pi, N_FOLDS)
        self._radii = RADII_MM * rng.uniform(0.95, 1.05, 3)

    def at(self, positions_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """The intensity at positions [..., 3] in the head's own coordinates."""
        folds = np.zeros(positions_mm.shape[:-1])
        for wave, phase in zip(self._waves, self._phases, strict=True):
            folds += np.cos(positions_mm @ wave + phase)
        outside = np.linalg.norm(positions_mm / self._radii, axis=-1)
        ventricle = np.linalg.norm((positions_mm - (0, 5, 5)) / (14, 25, 12), axis=-1)
        soft = 1 / (1 + np.exp((outside - 1) * 20))
        return np.asarray(soft * (900 + 60 * folds - 350 / (1 + np.exp((ventricle - 1) * 8))))

    def volume(
        self,
        affine: NDArray[np.float64],
        moved: ArrayLike | None = None,
        shape: tuple[int, int, int] = GRID,
        noise: float = 0.0,
        seed: int = 0,
    ) -> Volume:
        """What a scanner sees of it on a grid; ``moved`` maps the head's own coordinates to the scanner's."""
        back = np.linalg.inv(np.eye(4) if moved is None else np.asarray(moved)) @ affine
        voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
        values = self.at(voxels @ back[:3, :3].T + back[:3, 3])
        values += noise * np.random.default_rng(seed).standard_normal(shape)
        return values.astype(np.float32)


def grid_affine(side_mm: Any = SIDE_MM, shape: tuple[int, int, int] = GRID) -> NDArray[np.float64]:
    """An affine whose grid is centred at 0."""
    affine = np.diag([*np.broadcast_to(side_mm, 3), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def apart_mm(
    first: NDArray[np.float64], second: NDArray[np.float64], centre_mm: ArrayLike = (0, 0, 0)
) -> float:
    """The most that two transforms differ at 50 mm from a centre."""
    ways = np.random.default_rng(0).standard_normal((200, 3))
    points = np.asarray(centre_mm) + 50 * ways / np.linalg.norm(ways, axis=1)[:, None]
    apart = first - second
    return float(np.linalg.norm(points @ apart[:3, :3].T + apart[:3, 3], axis=1).max())
