"""A hierarchy of visual features: three stages of filters, rectification, pooling and normalisation.

The first stage is hand-made (:mod:`sim.image_features`); the filters of the other two are random and fixed by
a seed. No stage was trained on anything, and no decoder or metric uses it.
Shapes: N pictures, C channels, maps of 32, 16 and 8 cells across.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sim.image_features import MAP_SIZE, N_CHANNELS, feature_maps

F32 = npt.NDArray[np.float32]

MAP_SIZES = (MAP_SIZE, MAP_SIZE // 2, MAP_SIZE // 4)
_INPUTS_SHARE = 0.3  # of the channels below, those that a filter looks at
_AT_ONCE = 50


class Hierarchy:
    """Three stages of feature maps. Call :meth:`calibrate` once before :meth:`stages`."""

    def __init__(self, channels: tuple[int, int], saturation: float, rng: np.random.Generator) -> None:
        counts = (N_CHANNELS, *channels)
        self.n_channels = counts
        self._saturation = np.float32(saturation)
        self._filters = [_draw_filters(counts[index], count, rng) for index, count in enumerate(channels)]
        self._scales: list[F32] = []

    def calibrate(self, pictures: npt.NDArray[np.uint8]) -> list[F32]:
        """Take the size of each channel from pictures; return their :meth:`stages`."""
        self._scales = []
        maps = feature_maps(pictures)
        found: list[F32] = []
        for index in range(len(MAP_SIZES)):
            if index:
                maps = self._filtered(index - 1, found[-1])
            self._scales.append(maps.mean(axis=(1, 2, 3)) + np.float32(1e-6))
            found.append(self._normalised(index, maps))
        return found

    def stages(self, pictures: npt.NDArray[np.uint8]) -> list[F32]:
        """Compute all stages of pictures uint8 ``[N, 64, 64, 3]``: float32 ``[C, N, cells, cells]`` each."""
        found = [self._normalised(0, feature_maps(pictures))]
        for index in range(len(self._filters)):
            found.append(self._normalised(index + 1, self._filtered(index, found[-1])))
        return found

    def _filtered(self, index: int, maps: F32) -> F32:
        """Apply a stage's filters to the maps below, rectify, and pool 2 x 2 cells."""
        firsts = range(0, maps.shape[1], _AT_ONCE)
        parts = [self._filter_part(index, maps[:, first : first + _AT_ONCE]) for first in firsts]
        return np.concatenate(parts, axis=1)

    def _filter_part(self, index: int, maps: F32) -> F32:
        channels, n_pictures, cells, _ = maps.shape
        padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        shifted = [padded[..., y : y + cells, x : x + cells] for y in range(3) for x in range(3)]
        inputs = np.concatenate(shifted).reshape(9 * channels, -1)
        driven = np.maximum(self._filters[index] @ inputs, 0)
        return _pool(driven.reshape(-1, n_pictures, cells, cells))

    def _normalised(self, index: int, maps: F32) -> F32:
        """Divide each channel by what all channels do around it: ``a / (saturation + mean a)``."""
        relative = maps / self._scales[index][:, None, None, None]
        around = relative.mean(axis=0)
        padded = np.pad(around, ((0, 0), (1, 1), (1, 1)), mode="edge")
        cells = around.shape[-1]
        neighbours = [padded[:, y : y + cells, x : x + cells] for y in range(3) for x in range(3)]
        pool = np.mean(neighbours, axis=0)
        return np.asarray(relative / (self._saturation + pool), dtype=np.float32)


def _draw_filters(n_in: int, n_out: int, rng: np.random.Generator) -> F32:
    """Draw filters ``[n_out, 9 n_in]`` of 3 x 3 cells that look at some channels, and at differences only."""
    filters = rng.standard_normal((n_out, 9, n_in))
    filters *= rng.random((n_out, 1, n_in)) < _INPUTS_SHARE
    filters -= filters.mean(axis=(1, 2), keepdims=True)
    norm = np.sqrt((filters**2).sum(axis=(1, 2), keepdims=True))
    return np.asarray((filters / norm).reshape(n_out, -1), dtype=np.float32)


def _pool(maps: F32) -> F32:
    channels, n_pictures, cells, _ = maps.shape
    blocks = maps.reshape(channels, n_pictures, cells // 2, 2, cells // 2, 2)
    return np.asarray(blocks.mean(axis=(3, 5)), dtype=np.float32)
