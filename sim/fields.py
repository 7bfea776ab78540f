"""Receptive fields of retinotopic voxels: where they look, and what they pool there.

Legend: V voxels, C channels of feature maps, N pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.scenes import SIZE_PX
from sim.settings import CortexSettings

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Centres (x to the right, y down) and sizes (SD of a Gaussian) of receptive fields; float64 ``[V]``."""

    x_px: npt.NDArray[np.float64]
    y_px: npt.NDArray[np.float64]
    sigma_px: npt.NDArray[np.float64]

    def some(self, members: npt.NDArray[np.int64], growth: float) -> Fields:
        """Return the fields of some voxels, larger by a factor."""
        return Fields(
            x_px=self.x_px[members], y_px=self.y_px[members], sigma_px=growth * self.sigma_px[members]
        )

    def on(self, map_size: int) -> F32:
        """Return the fields on maps of this many cells across: ``[cells, V]``, each sums to 1."""
        centres = (np.arange(map_size) + 0.5) * (SIZE_PX // map_size)
        across = np.exp(-((centres[:, None] - self.x_px) ** 2) / (2 * self.sigma_px**2))
        down = np.exp(-((centres[:, None] - self.y_px) ** 2) / (2 * self.sigma_px**2))
        fields = (down[:, None, :] * across[None, :, :]).reshape(map_size**2, len(self.x_px))
        return np.asarray(fields / fields.sum(axis=0), dtype=np.float32)


def draw_fields(settings: CortexSettings, positions: F32, rng: np.random.Generator) -> Fields:
    """Draw the receptive fields of voxels at ``positions`` ``[V, 3]``.

    As in visual cortex, eccentricity grows towards the front, the left hemisphere sees the right half of the
    picture, and upper cortex its lower half; positions scatter randomly.
    """
    n_voxels = len(positions)
    forward = np.argsort(np.argsort(positions[:, 1] + rng.normal(0, 0.1, n_voxels))) / n_voxels
    eccentricity_px = settings.max_eccentricity_px * forward**0.8
    side = np.where(positions[:, 0] < 0, 0.0, np.pi)
    angle = side + np.where(positions[:, 0] < 0, 1, -1) * rng.uniform(-np.pi / 2, np.pi / 2, n_voxels)
    angle = np.where(positions[:, 2] * np.sin(angle) > 0, angle, -angle)  # rows grow downwards
    half = SIZE_PX / 2
    return Fields(
        x_px=np.clip(half + eccentricity_px * np.cos(angle), 0, SIZE_PX),
        y_px=np.clip(half + eccentricity_px * np.sin(angle), 0, SIZE_PX),
        sigma_px=settings.rf_sigma_px + settings.rf_sigma_slope * eccentricity_px,
    )


def draw_weights(settings: CortexSettings, n_channels: int, n_voxels: int, rng: np.random.Generator) -> F32:
    """Draw how much each channel drives each voxel, ``[C, V]``: few channels do, some of them negatively."""
    weights = rng.exponential(1.0, (n_channels, n_voxels))
    weights *= rng.random(weights.shape) < settings.channel_share
    weights *= np.where(rng.random(weights.shape) < settings.suppressive_share, -1, 1)
    return weights.astype(np.float32)


def pooled_drive(maps: F32, scale: F32, fields: F32, weights: F32) -> F32:
    """Pool channels ``[C, N, cells, cells]`` over receptive fields and mix them: ``[N, V]``.

    :param scale: by which each channel is divided, ``[C]``
    """
    n_images = maps.shape[1]
    drive = np.zeros((n_images, weights.shape[1]), dtype=np.float32)
    for channel, size, mix in zip(maps, scale, weights, strict=True):
        driven = np.flatnonzero(mix)
        pooled = channel.reshape(n_images, -1) @ fields[:, driven]
        drive[:, driven] += pooled * (mix[driven] / size)
    return drive


def compressed(drive: F32, exponent: float) -> F32:
    """Return the response to a drive, which grows less than it."""
    return np.asarray(np.sign(drive) * np.abs(drive) ** np.float32(exponent), dtype=np.float32)
