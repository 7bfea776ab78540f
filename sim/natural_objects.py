"""How object-selective voxels of the natural world code a scene of several objects.

An object's place in the code is partly what it looks like, by the last stage of the hierarchy, and partly
what family it belongs to, which no picture shows. Legend: N trials, K objects of a scene, O all objects, D
dimensions, V voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.hierarchy import Hierarchy
from sim.natural_scenes import FAMILIES, OBJECTS, Placed, Rendered, draw_object
from sim.scenes import SIZE_PX
from sim.settings import NaturalSettings

F32 = npt.NDArray[np.float32]
_GREY = 128
_AT_ONCE = 100


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The objects of a scene as they are seen.

    ``objects`` int64 ``[K]``; ``area`` float32 ``[K]``: visible share of the picture; ``offset_px`` float32
    ``[K]``: distance of what is visible of each from where the eyes look.
    """

    objects: npt.NDArray[np.int64]
    area: F32
    offset_px: F32

    @staticmethod
    def of(scene: Rendered, gaze_px: F32) -> Seen:
        """Measure a scene that is looked at ``gaze_px`` (x, y) off its middle."""
        across = (np.arange(SIZE_PX) + 0.5 - SIZE_PX / 2).astype(np.float32)
        mass = np.maximum(scene.visible.sum(axis=(1, 2)), 1e-3)
        x_px = scene.visible.sum(axis=1) @ across / mass - gaze_px[0]
        y_px = scene.visible.sum(axis=2) @ across / mass - gaze_px[1]
        offset_px = np.hypot(x_px, y_px).astype(np.float32)
        return Seen(objects=scene.objects, area=(mass / SIZE_PX**2).astype(np.float32), offset_px=offset_px)


class ObjectCode:
    """Tuning of a subject's object-selective voxels.

    :param rngs: of what all subjects share, and of this subject
    """

    def __init__(
        self,
        settings: NaturalSettings,
        hierarchy: Hierarchy,
        n_voxels: int,
        rngs: tuple[np.random.Generator, np.random.Generator],
    ) -> None:
        shared_rng, rng = rngs
        self._settings = settings
        self._places = _object_places(settings, hierarchy, shared_rng)
        shape = (settings.object_dimensions, n_voxels)
        self._tunings = [rng.normal(size=shape) / np.sqrt(len(self._places[0])) for _ in range(2)]

    def responses(self, scenes: Sequence[Seen], tuning_rad: F32) -> F32:
        """Return responses ``[N, V]``: each object's, weighted by how strongly it wins against the others."""
        liked = self._preferences(tuning_rad)
        responses = np.zeros((len(scenes), liked.shape[1]), dtype=np.float32)
        power = self._settings.competition
        half = self._settings.half_area ** (power * self._settings.size_exponent / 2)
        for row, scene in enumerate(scenes):
            strength = self._strength(scene) ** power
            share = strength / (half + strength.sum())
            responses[row] = share @ liked[scene.objects]
        return responses

    def _strength(self, scene: Seen) -> F32:
        """Return the strength of each object ``[K]``: its visible area, less the further from the fovea."""
        sigma_px = self._settings.position_sigma_px
        place = np.exp(-(scene.offset_px**2) / (2 * sigma_px**2))
        return np.asarray(scene.area ** (self._settings.size_exponent / 2) * place, dtype=np.float32)

    def _preferences(self, tuning_rad: F32) -> F32:
        """Return the response to each object alone, ``[O, V]``: sparse, and compressed."""
        first, second = self._tunings
        drive = self._places @ (np.cos(tuning_rad) * first + np.sin(tuning_rad) * second)
        threshold = np.quantile(drive, 1 - self._settings.driving_share, axis=0)
        return np.asarray(np.maximum(drive - threshold, 0) ** self._settings.compression, dtype=np.float32)


def _object_places(
    settings: NaturalSettings, hierarchy: Hierarchy, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return each object's place in the code, ``[O, D]``; every dimension has mean 0 and SD 1."""
    looks = _looks(hierarchy)
    dimensions = settings.object_dimensions
    seen = _standardised(looks @ rng.normal(size=(looks.shape[1], dimensions)))
    family = np.empty((len(OBJECTS), dimensions))
    for group in FAMILIES:
        family[list(group.members)] = rng.normal(size=dimensions)
    weight = settings.family_weight
    return np.asarray(np.sqrt(1 - weight) * seen + np.sqrt(weight) * _standardised(family))


def _looks(hierarchy: Hierarchy) -> npt.NDArray[np.float64]:
    """Return the last stage's mean in each quarter of a picture of each object alone, ``[O, 4 C]``."""
    found = []
    for first in range(0, len(OBJECTS), _AT_ONCE):
        objects = range(first, min(first + _AT_ONCE, len(OBJECTS)))
        maps = hierarchy.stages(np.stack([_alone(index) for index in objects]))[-1]
        channels, n_objects, cells, _ = maps.shape
        quarters = maps.reshape(channels, n_objects, 2, cells // 2, 2, cells // 2).mean(axis=(3, 5))
        found.append(np.moveaxis(quarters, 1, 0).reshape(n_objects, -1))
    return _standardised(np.concatenate(found).astype(np.float64))


def _alone(index: int) -> npt.NDArray[np.uint8]:
    middle = (SIZE_PX / 2, SIZE_PX / 2)
    drawn = draw_object(
        Placed(object_index=index, size_px=SIZE_PX, rotation_deg=0, is_mirrored=False, centre_px=middle)
    )
    picture = drawn[..., :3] + (1 - drawn[..., 3:] / 255) * _GREY
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _standardised(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray((values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9))
