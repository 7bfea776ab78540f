"""The forward model: computes the BOLD response of the ROI to pictures.

It shares nothing with the decoder and uses no network, only hand-written feature maps, object tuning and
double-gamma responses. Legend: N pictures, V voxels of the ROI, T volumes, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nsd import N_DESIGN_ROWS
from sim.anatomy import Anatomy, build_anatomy
from sim.haemodynamics import double_gamma
from sim.image_features import CELL_PX, MAP_SIZE, N_CHANNELS, feature_maps
from sim.scenes import OBJECTS, SIZE_PX, Scene, SceneSet
from sim.settings import CortexSettings

F32 = npt.NDArray[np.float32]

N_WRITTEN_VOLUMES = N_DESIGN_ROWS + 1
_FIRST_REFERENCE_IMAGE = 1_000_000  # scenes that no subject sees; they calibrate the responses
_N_REFERENCE_IMAGES = 400
_N_REFERENCE_RUNS = 16
_BATCH = 200


class Cortex:
    """The ROI of one subject; depends on settings, seed and subject only."""

    def __init__(self, settings: CortexSettings, seed: int, subject: int) -> None:
        self.settings = settings
        self.anatomy: Anatomy = build_anatomy(settings)
        self.scenes = SceneSet(seed)
        rng = np.random.default_rng([seed, subject, 0])
        # The rearmost voxels of the ROI are retinotopic, the others object-selective.
        order = np.argsort(self.anatomy.positions[:, 1], kind="stable")
        self._retinotopic = order[: settings.n_retinotopic]
        self._selective = order[settings.n_retinotopic :]
        self._fields, self._weights = _retinotopy(settings, self.anatomy.positions[self._retinotopic], rng)
        self._tuning = _object_tuning(settings, len(self._selective), self.scenes, rng)
        self.peak_s = rng.uniform(*settings.peak_s, settings.n_roi_voxels).astype(np.float32)
        self.hrf: F32 = double_gamma(
            self.peak_s,
            dispersion_s=settings.dispersion_s,
            undershoot_delay_s=settings.undershoot_delay_s,
            undershoot_share=settings.undershoot_share,
            image_on_s=settings.image_on_s,
        ).astype(np.float32)
        self._calibrate(rng)

    @property
    def n_voxels(self) -> int:
        """Number of voxels in the ROI."""
        return self.settings.n_roi_voxels

    def responses(self, images: Sequence[int]) -> F32:
        """Return neural responses ``[N, V]``, scaled so that a run's evoked series has mean variance 1."""
        return (self._standardised(images) + np.float32(self.settings.common_response_sd)) * self._gain

    def evoked(self, onsets: Sequence[int], responses: F32) -> F32:
        """Convolve ``responses`` ``[N, V]`` at volumes ``onsets`` to the BOLD series ``[226, V]``."""
        events = np.zeros((N_WRITTEN_VOLUMES, responses.shape[1]), dtype=np.float32)
        events[np.asarray(onsets, dtype=np.int64)] = responses
        series = np.zeros_like(events)
        for lag, weight in enumerate(self.hrf):
            series[lag:] += events[: N_WRITTEN_VOLUMES - lag] * weight
        return series

    def _calibrate(self, rng: np.random.Generator) -> None:
        """Measure each voxel's mean, SD and evoked variance on scenes that no subject sees."""
        self._channel_scale = np.ones(N_CHANNELS, dtype=np.float32)
        self._mean = np.zeros(self.n_voxels, dtype=np.float32)
        self._sd = np.ones(self.n_voxels, dtype=np.float32)
        self._gain = np.ones(self.n_voxels, dtype=np.float32)
        images = range(_FIRST_REFERENCE_IMAGE, _FIRST_REFERENCE_IMAGE + _N_REFERENCE_IMAGES)
        maps = np.concatenate([self._maps(part) for part in _batches(images)], axis=1)
        self._channel_scale = maps.std(axis=(1, 2, 3))
        raw = self._raw(images, maps)
        self._mean, self._sd = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-6)
        standard = (raw - self._mean) / self._sd + np.float32(self.settings.common_response_sd)
        variances = []
        for _ in range(_N_REFERENCE_RUNS):
            onsets = 9 + 3 * np.sort(rng.choice(68, 62, replace=False))
            shown = rng.choice(len(standard), len(onsets), replace=False)
            variances.append(self.evoked(onsets.tolist(), standard[shown]).var(axis=0))
        self._gain = np.asarray(1 / np.sqrt(np.mean(variances, axis=0)), dtype=np.float32)

    def _standardised(self, images: Sequence[int]) -> F32:
        return (self._raw(images) - self._mean) / self._sd

    def _raw(self, images: Sequence[int], maps: F32 | None = None) -> F32:
        """Return unscaled responses ``[N, V]``; ``maps`` ``[C, N, 32, 32]`` are computed if not given."""
        raw = np.empty((len(images), self.n_voxels), dtype=np.float32)
        for batch, part in enumerate(_batches(images)):
            rows = slice(batch * _BATCH, batch * _BATCH + len(part))
            part_maps = self._maps(part) if maps is None else maps[:, rows]
            raw[rows, self._retinotopic] = self._place_responses(part_maps)
            raw[rows, self._selective] = self._object_responses(part)
        return raw

    def _maps(self, images: Sequence[int]) -> F32:
        return feature_maps(np.stack([self.scenes.render(image) for image in images]))

    def _place_responses(self, maps: F32) -> F32:
        """Pool channels over receptive fields, mix and compress them: ``[N, V]``."""
        n_images = maps.shape[1]
        drive = np.zeros((n_images, len(self._retinotopic)), dtype=np.float32)
        for channel, scale, weights in zip(maps, self._channel_scale, self._weights, strict=True):
            driven = np.flatnonzero(weights)
            pooled = channel.reshape(n_images, -1) @ self._fields[:, driven]
            drive[:, driven] += pooled * (weights[driven] / scale)
        return np.sign(drive) * np.abs(drive) ** np.float32(self.settings.compression)

    def _object_responses(self, images: Sequence[int]) -> F32:
        """Return responses to the objects, which grow with size and fall with eccentricity: ``[N, V]``."""
        scenes = [self.scenes.scene(image) for image in images]
        gains = np.array([self._size_gain(scene) for scene in scenes], dtype=np.float32)
        return self._tuning[[scene.object_index for scene in scenes]] * gains[:, None]

    def _size_gain(self, scene: Scene) -> float:
        distance2 = scene.shift_px[0] ** 2 + scene.shift_px[1] ** 2
        position = np.exp(-distance2 / (2 * self.settings.position_sigma_px**2))
        return float(scene.scale**self.settings.size_exponent * position)


def _batches(images: Sequence[int]) -> list[Sequence[int]]:
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]


def _retinotopy(settings: CortexSettings, positions: F32, rng: np.random.Generator) -> tuple[F32, F32]:
    """Draw receptive fields ``[cells, V]`` (each sums to 1) and channel weights ``[C, V]``.

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
    x_px = np.clip(half + eccentricity_px * np.cos(angle), 0, SIZE_PX)
    y_px = np.clip(half + eccentricity_px * np.sin(angle), 0, SIZE_PX)
    sigma_px = settings.rf_sigma_px + settings.rf_sigma_slope * eccentricity_px
    centres = (np.arange(MAP_SIZE) + 0.5) * CELL_PX
    across = np.exp(-((centres[:, None] - x_px) ** 2) / (2 * sigma_px**2))
    down = np.exp(-((centres[:, None] - y_px) ** 2) / (2 * sigma_px**2))
    fields = (down[:, None, :] * across[None, :, :]).reshape(MAP_SIZE**2, n_voxels)
    weights = rng.exponential(1.0, (N_CHANNELS, n_voxels))
    weights *= rng.random(weights.shape) < settings.channel_share
    weights *= np.where(rng.random(weights.shape) < settings.suppressive_share, -1, 1)
    return (fields / fields.sum(axis=0)).astype(np.float32), weights.astype(np.float32)


def _object_tuning(
    settings: CortexSettings, n_voxels: int, scenes: SceneSet, rng: np.random.Generator
) -> F32:
    """Draw responses ``[n_objects, V]`` of selective voxels to objects: sparse, similar within a category."""
    dimensions = settings.object_dimensions
    by_category = {name: rng.normal(size=dimensions) for name in scenes.categories}
    own = rng.normal(size=(scenes.n_objects, dimensions))
    weight = settings.category_weight
    shared = np.stack([by_category[name] for name, members in OBJECTS.items() for _ in members])
    places = np.sqrt(weight) * shared + np.sqrt(1 - weight) * own
    preference = rng.normal(size=(dimensions, n_voxels)) / np.sqrt(dimensions)
    drive = places @ preference
    threshold = np.quantile(drive, 1 - settings.driving_share, axis=0)
    return np.asarray(np.maximum(drive - threshold, 0) ** settings.compression, dtype=np.float32)
