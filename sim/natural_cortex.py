"""The natural world's forward model: what a subject's ROI does in each trial of each session.

Retinotopic voxels pool one stage of a nonlinear hierarchy of features in receptive fields that grow from
stage to stage. Object-selective voxels see all objects of a scene, which compete. Where the eyes look differs
from trial to trial; attention drifts within a run; a picture that was seen before evokes less; tuning and
gain drift from session to session. Legend: N trials or pictures, V voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from sim.fields import compressed, draw_fields, draw_weights, pooled_drive
from sim.forward import BATCH, REFERENCE_IMAGES, ForwardModel, Trials
from sim.haemodynamics import draw_responses
from sim.hierarchy import MAP_SIZES, Hierarchy
from sim.natural_objects import ObjectCode, Seen
from sim.natural_scenes import NaturalScenes, Rendered
from sim.natural_state import SessionState, TrialState, draw_trial_state, session_state, steady_state
from sim.settings import NaturalSettings

F32 = npt.NDArray[np.float32]


class NaturalCortex(ForwardModel):
    """The ROI of one subject; depends on settings, seed and subject only."""

    def __init__(self, settings: NaturalSettings, seed: int, subject: int) -> None:
        super().__init__(settings)
        self.settings = settings
        self.scenes = NaturalScenes(settings, seed)
        self._key = (seed, subject)
        # The features are the same for all subjects of a seed; their voxels differ.
        shared_rng, rng = np.random.default_rng([seed, 0, 2]), np.random.default_rng([seed, subject, 0])
        self._hierarchy = Hierarchy(settings.stage_channels, settings.saturation, shared_rng)
        reference = [self.scenes.layers(image) for image in REFERENCE_IMAGES]
        stages = self._hierarchy.calibrate(np.stack([scene.picture for scene in reference]))
        self._objects = ObjectCode(settings, self._hierarchy, len(self.selective), (shared_rng, rng))
        self._draw_stages(rng)
        self.hrf = draw_responses(settings, self.n_voxels, rng)
        self.signal_factor = np.ones(self.n_voxels, dtype=np.float32)
        self.signal_factor[self.selective] = settings.selective_signal
        self._calibrate(reference, stages, rng)

    def trial_responses(self, session: int, trials: Trials) -> F32:
        """Return the responses in a session, ``[N, V]``; every trial differs."""
        rng = np.random.default_rng([*self._key, 9, session])
        return self.responses(session, trials, draw_trial_state(self.settings, trials, rng))

    def expected_responses(self, session: int, trials: Trials) -> F32:
        """Return the responses of a subject who looks at the middle and attends as always, ``[N, V]``."""
        return self.responses(session, trials, steady_state(trials))

    def responses(self, session: int, trials: Trials, state: TrialState) -> F32:
        """Return the responses in a session ``[N, V]`` while the eyes and attention are in a given state."""
        voxels = session_state(self.settings, self._key, session, self.n_voxels)
        scenes = {image: self.scenes.layers(image) for image in np.unique(trials.images).tolist()}
        responses = np.empty((len(trials.images), self.n_voxels), dtype=np.float32)
        for first in range(0, len(responses), BATCH):
            rows = slice(first, first + BATCH)
            shown = [scenes[image] for image in trials.images[rows].tolist()]
            responses[rows] = self._raw(shown, state.gaze_px[rows], voxels)
        standard = (responses - self._mean) / self._sd + np.float32(self.settings.common_response_sd)
        gain = np.empty_like(standard)
        for voxel_class, of_class in enumerate((self.retinotopic, self.selective)):
            kept = (1 - self.settings.repetition_loss[voxel_class]) ** trials.times_seen
            attended = np.exp(self.settings.attention_sd[voxel_class] * state.attention)
            gain[:, of_class] = (kept * attended)[:, None]
        return np.asarray(standard * gain * self._gain * voxels.gain, dtype=np.float32)

    def _draw_stages(self, rng: np.random.Generator) -> None:
        """Draw which stage each retinotopic voxel reads, where it looks, and two tunings to drift between."""
        fields = draw_fields(self.settings, self.anatomy.positions[self.retinotopic], rng)
        bounds = np.cumsum([0, *self.settings.stage_share])
        cuts = np.round(bounds / bounds[-1] * len(self.retinotopic)).astype(np.int64)
        self._stages = []
        for stage, cells in enumerate(MAP_SIZES):
            members = np.arange(cuts[stage], cuts[stage + 1])
            grown = fields.some(members, self.settings.stage_rf_growth**stage)
            tunings = [
                draw_weights(self.settings, self._hierarchy.n_channels[stage], len(members), rng)
                for _ in range(2)
            ]
            self._stages.append((members, grown.on(cells), tunings))

    def _calibrate(
        self, reference: Sequence[Rendered], stages: Sequence[F32], rng: np.random.Generator
    ) -> None:
        """Measure each voxel's mean, SD and evoked variance on scenes that no subject sees."""
        self._channel_scales = [maps.std(axis=(1, 2, 3)) for maps in stages]
        still = np.zeros((len(reference), 2), dtype=np.float32)
        voxels = session_state(self.settings, self._key, 0, self.n_voxels)
        raw = np.concatenate(
            [
                self._raw(reference[first : first + BATCH], still[first : first + BATCH], voxels)
                for first in range(0, len(reference), BATCH)
            ]
        )
        self._mean, self._sd = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-6)
        standard = (raw - self._mean) / self._sd + np.float32(self.settings.common_response_sd)
        self._gain = self.gain_of(standard, rng)

    def _raw(self, scenes: Sequence[Rendered], gaze_px: F32, voxels: SessionState) -> F32:
        """Return unscaled responses ``[N, V]`` to scenes, with the gaze off the middle by ``[N, 2]`` px."""
        raw = np.empty((len(scenes), self.n_voxels), dtype=np.float32)
        seen = np.stack([_shifted(scene.picture, gaze) for scene, gaze in zip(scenes, gaze_px, strict=True)])
        for maps, scale, (members, fields, (first, second)) in zip(
            self._hierarchy.stages(seen), self._channel_scales, self._stages, strict=True
        ):
            places = self.retinotopic[members]
            angle = voxels.tuning_rad[places]
            weights = (np.cos(angle) * first + np.sin(angle) * second).astype(np.float32)
            drive = pooled_drive(maps, scale, fields, weights)
            raw[:, places] = compressed(drive, self.settings.compression)
        looked_at = [Seen.of(scene, gaze) for scene, gaze in zip(scenes, gaze_px, strict=True)]
        raw[:, self.selective] = self._objects.responses(looked_at, voxels.tuning_rad[self.selective])
        return raw


def _shifted(picture: npt.NDArray[np.uint8], gaze_px: F32) -> npt.NDArray[np.uint8]:
    """Return what falls on the fovea's place when the eyes look ``gaze_px`` (x, y) off the middle."""
    if not gaze_px.any():
        return picture
    move = np.array([[1, 0, -gaze_px[0]], [0, 1, -gaze_px[1]]], dtype=np.float64)
    size = picture.shape[1], picture.shape[0]
    return np.asarray(cv2.warpAffine(picture, move, size, borderMode=cv2.BORDER_REPLICATE), dtype=np.uint8)
