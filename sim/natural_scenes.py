"""Scenes of the natural world: several objects that occlude each other, on textured surfaces.

The 832 objects come in families (``worlds/objects.toml``). The shared 1 000 pictures show objects of the new
families only, all other pictures objects of the known families only. So whoever is trained without the shared
pictures, base model or decoder, has never seen an object of a new family.
"""

from __future__ import annotations

import functools
import tomllib
import unicodedata
from dataclasses import dataclass
from importlib import resources

import cv2
import numpy as np
import numpy.typing as npt

from sim.errors import SimError
from sim.experiment import plan_experiment
from sim.scenes import SIZE_PX
from sim.settings import NaturalSettings
from sim.sprites import rasterise
from sim.textures import draw_background

F32 = npt.NDArray[np.float32]

SPRITE_PX = 96
_FINE = 2  # objects are placed on a grid that is finer by this factor, so that their edges are smooth
_TRIES = 60
_STREAM = 5
"""Apart from plain scenes; frozen with the settings, though scenes 0 and 2 share it with subject 5."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of objects, and the places of its members in :data:`OBJECTS`."""

    name: str
    is_new: bool
    members: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An object in a scene; ``centre_px`` is (x, y). ``size_px`` is the edge of its picture, as drawn."""

    object_index: int
    size_px: float
    rotation_deg: float
    is_mirrored: bool
    centre_px: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A scene as pixels, and what of each of its K objects can be seen.

    ``picture`` uint8 ``[64, 64, 3]``; ``objects`` int64 ``[K]``; ``visible`` float32 ``[K, 64, 64]``: each
    object's share of each pixel.
    """

    picture: npt.NDArray[np.uint8]
    objects: npt.NDArray[np.int64]
    visible: F32


def _read_catalogue() -> tuple[tuple[str, ...], tuple[Family, ...]]:
    text = (resources.files("sim") / "worlds" / "objects.toml").read_text(encoding="utf-8")
    codes: list[str] = []
    families = []
    for kind, group in tomllib.loads(text).items():
        for name, members in group.items():
            first = len(codes)
            codes.extend(members.split())
            places = tuple(range(first, len(codes)))
            families.append(Family(name=name, is_new=kind == "new", members=places))
    return tuple(codes), tuple(families)


OBJECTS, FAMILIES = _read_catalogue()
"""Code points of all objects, and their families."""


def object_name(index: int) -> str:
    """Return an object's name in Unicode, in lower case."""
    return unicodedata.name(chr(int(OBJECTS[index], 16))).lower()


@functools.cache
def sprite(index: int) -> npt.NDArray[np.uint8]:
    """Return an object: RGB premultiplied by alpha, and alpha, uint8 ``[96, 96, 4]``."""
    drawn = rasterise(OBJECTS[index], object_name(index), SPRITE_PX)
    drawn[..., 3] *= 255
    return np.rint(drawn).astype(np.uint8)


@functools.cache
def _shared(seed: int) -> frozenset[int]:
    return frozenset(plan_experiment(seed).shared.tolist())


class NaturalScenes:
    """All scenes of one seed, numbered from 0; ``image`` is NSD's 0-based 73k index."""

    def __init__(self, settings: NaturalSettings, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self._shared = _shared(seed)

    def is_new(self, image: int) -> bool:
        """Whether a scene shows objects of the new families: it is one of the shared 1 000."""
        return image in self._shared

    def objects(self, image: int) -> list[Placed]:
        """Return the objects of a scene from back to front.

        :raises SimError: when ``image`` is negative
        """
        return self._draw_objects(image, self._rng(image))

    def name(self, image: int) -> str:
        """Name the objects of a scene, front first."""
        return ", ".join(object_name(placed.object_index) for placed in reversed(self.objects(image)))

    def render(self, image: int) -> npt.NDArray[np.uint8]:
        """Render a scene, RGB uint8 ``[64, 64, 3]``."""
        return self.layers(image).picture

    def layers(self, image: int) -> Rendered:
        """Render a scene, and how much of each object can be seen where."""
        rng = self._rng(image)
        placed = self._draw_objects(image, rng)
        picture = draw_background(SIZE_PX, rng)
        visible = np.zeros((len(placed), SIZE_PX, SIZE_PX), dtype=np.float32)
        for index, item in enumerate(placed):
            drawn = draw_object(item)
            alpha = drawn[..., 3] / 255
            visible[:index] *= 1 - alpha
            visible[index] = alpha
            picture = (drawn[..., :3] + (1 - alpha[..., None]) * picture).astype(np.float32)
        return Rendered(
            picture=np.clip(np.rint(picture), 0, 255).astype(np.uint8),
            objects=np.array([item.object_index for item in placed], dtype=np.int64),
            visible=visible,
        )

    def _rng(self, image: int) -> np.random.Generator:
        if image < 0:
            raise SimError(f"expected a scene number from 0, got {image}")
        return np.random.default_rng([self.seed, _STREAM, image])

    def _draw_objects(self, image: int, rng: np.random.Generator) -> list[Placed]:
        families = [family for family in FAMILIES if family.is_new == self.is_new(image)]
        weights = np.sqrt([len(family.members) for family in families])
        low, high = self.settings.objects
        count = int(rng.integers(low, high + 1))
        placed: list[Placed] = []
        for _ in range(count):
            family = families[int(rng.choice(len(families), p=weights / weights.sum()))]
            size_px = rng.uniform(*self.settings.object_px) * np.sqrt(low / count)
            centre_px = self._draw_place(size_px, placed, rng)
            item = Placed(
                object_index=int(rng.choice(family.members)),
                size_px=float(size_px),
                rotation_deg=float(rng.uniform(-15, 15)),
                is_mirrored=bool(rng.random() < 0.5),
                centre_px=centre_px,
            )
            placed.append(item)
        return sorted(placed, key=lambda item: item.centre_px[1] + item.size_px / 2)

    def _draw_place(
        self, size_px: float, placed: list[Placed], rng: np.random.Generator
    ) -> tuple[float, float]:
        """Draw a centre: of some tries, the first that is far enough from all others, else the last."""
        reach = size_px * 0.45
        centre = (0.0, 0.0)
        for _ in range(_TRIES):
            x_px, y_px = rng.uniform(reach, SIZE_PX - reach, 2).tolist()
            centre = (x_px, y_px)
            apart = [
                np.hypot(x_px - other.centre_px[0], y_px - other.centre_px[1])
                / ((size_px + other.size_px) / 2)
                for other in placed
            ]
            if min(apart, default=1.0) >= 1 - self.settings.overlap:
                break
        return centre


def draw_object(item: Placed) -> F32:
    """Draw an object at its place, RGB premultiplied and alpha, from 0 to 255: ``[64, 64, 4]``."""
    turn = cv2.getRotationMatrix2D(
        (SPRITE_PX / 2, SPRITE_PX / 2), item.rotation_deg, _FINE * item.size_px / SPRITE_PX
    )
    matrix = np.asarray(turn, dtype=np.float64)
    matrix[:, 2] += _FINE * np.array(item.centre_px) - SPRITE_PX / 2
    shape = sprite(item.object_index)
    if item.is_mirrored:
        shape = np.ascontiguousarray(shape[:, ::-1])
    fine = cv2.warpAffine(shape, matrix, (_FINE * SIZE_PX, _FINE * SIZE_PX), flags=cv2.INTER_LINEAR)
    return cv2.resize(fine, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
