"""The plain world's forward model: computes the neural response of the ROI to pictures.

It shares nothing with the decoder and uses no network, only hand-written feature maps, object tuning and
double-gamma responses. Legend: N pictures, V voxels of the ROI, T volumes, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sim.fields import compressed, draw_fields, draw_weights, pooled_drive
from sim.forward import BATCH, REFERENCE_IMAGES, ForwardModel, Trials, batches
from sim.haemodynamics import double_gamma
from sim.image_features import MAP_SIZE, N_CHANNELS, feature_maps
from sim.scenes import OBJECTS, Scene, SceneSet
from sim.settings import PlainSettings

F32 = npt.NDArray[np.float32]


class Cortex(ForwardModel):
    """The ROI of one subject; depends on settings, seed and subject only."""

    def __init__(self, settings: PlainSettings, seed: int, subject: int) -> None:
        super().__init__(settings)
        self.settings = settings
        self.scenes = SceneSet(seed)
        rng = np.random.default_rng([seed, subject, 0])
        self._fields = draw_fields(settings, self.anatomy.positions[self.retinotopic], rng).on(MAP_SIZE)
        self._weights = draw_weights(settings, N_CHANNELS, len(self.retinotopic), rng)
        self._tuning = _object_tuning(settings, len(self.selective), self.scenes, rng)
        self.peak_s = rng.uniform(*settings.peak_s, settings.n_roi_voxels).astype(np.float32)
        self.hrf = double_gamma(
            self.peak_s,
            dispersion_s=settings.dispersion_s,
            undershoot_delay_s=settings.undershoot_delay_s,
            undershoot_share=settings.undershoot_share,
            image_on_s=settings.image_on_s,
        ).astype(np.float32)
        self._calibrate(rng)

    def trial_responses(self, session: int, trials: Trials) -> F32:
        """Return the responses in a session, which are the same whenever a picture is shown: ``[N, V]``."""
        images, rows = np.unique(trials.images, return_inverse=True)
        return self.responses(images.tolist())[rows]

    def responses(self, images: Sequence[int]) -> F32:
        """Return neural responses ``[N, V]``, scaled so that a run's evoked series has mean variance 1."""
        return (self._standardised(images) + np.float32(self.settings.common_response_sd)) * self._gain

    def _calibrate(self, rng: np.random.Generator) -> None:
        """Measure each voxel's mean, SD and evoked variance on scenes that no subject sees."""
        self._channel_scale = np.ones(N_CHANNELS, dtype=np.float32)
        self._mean = np.zeros(self.n_voxels, dtype=np.float32)
        self._sd = np.ones(self.n_voxels, dtype=np.float32)
        maps = np.concatenate([self._maps(part) for part in batches(REFERENCE_IMAGES)], axis=1)
        self._channel_scale = maps.std(axis=(1, 2, 3))
        raw = self._raw(REFERENCE_IMAGES, maps)
        self._mean, self._sd = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-6)
        standard = (raw - self._mean) / self._sd + np.float32(self.settings.common_response_sd)
        self._gain = self.gain_of(standard, rng)

    def _standardised(self, images: Sequence[int]) -> F32:
        return (self._raw(images) - self._mean) / self._sd

    def _raw(self, images: Sequence[int], maps: F32 | None = None) -> F32:
        """Return unscaled responses ``[N, V]``; ``maps`` ``[C, N, 32, 32]`` are computed if not given."""
        raw = np.empty((len(images), self.n_voxels), dtype=np.float32)
        for batch, part in enumerate(batches(images)):
            rows = slice(batch * BATCH, batch * BATCH + len(part))
            part_maps = self._maps(part) if maps is None else maps[:, rows]
            drive = pooled_drive(part_maps, self._channel_scale, self._fields, self._weights)
            raw[rows, self.retinotopic] = compressed(drive, self.settings.compression)
            raw[rows, self.selective] = self._object_responses(part)
        return raw

    def _maps(self, images: Sequence[int]) -> F32:
        return feature_maps(np.stack([self.scenes.render(image) for image in images]))

    def _object_responses(self, images: Sequence[int]) -> F32:
        """Return responses to the objects, which grow with size and fall with eccentricity: ``[N, V]``."""
        scenes = [self.scenes.scene(image) for image in images]
        gains = np.array([self._size_gain(scene) for scene in scenes], dtype=np.float32)
        return self._tuning[[scene.object_index for scene in scenes]] * gains[:, None]

    def _size_gain(self, scene: Scene) -> float:
        distance2 = scene.shift_px[0] ** 2 + scene.shift_px[1] ** 2
        position = np.exp(-distance2 / (2 * self.settings.position_sigma_px**2))
        return float(scene.scale**self.settings.size_exponent * position)


def _object_tuning(settings: PlainSettings, n_voxels: int, scenes: SceneSet, rng: np.random.Generator) -> F32:
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
