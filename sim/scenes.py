"""Scenes of the plain world: one OpenMoji picture on a two-colour gradient.

Pictures of objects are rasterised once per process (:mod:`sim.sprites`).
Seed and image number determine the pixels, so scenes are rendered where they are needed (stimulus file,
markers of a replay) and never shipped.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sim.errors import SimError
from sim.sprites import rasterise

SIZE_PX = 64
_SPRITE_PX = 2 * SIZE_PX  # rendered larger and reduced, so that a rotated object has smooth edges

# Each object is a code point of OpenMoji; eight categories of eight, chosen to differ in colour and shape.
OBJECTS: dict[str, dict[str, str]] = {
    "face": {
        "dog": "1F436", "cat": "1F431", "fox": "1F98A", "frog": "1F438",
        "panda": "1F43C", "lion": "1F981", "pig": "1F437", "monkey": "1F435",
    },
    "creature": {
        "tropical fish": "1F420", "turtle": "1F422", "butterfly": "1F98B", "lady beetle": "1F41E",
        "octopus": "1F419", "crab": "1F980", "elephant": "1F418", "duck": "1F986",
    },
    "fruit": {
        "apple": "1F34E", "banana": "1F34C", "grapes": "1F347", "strawberry": "1F353",
        "watermelon": "1F349", "lemon": "1F34B", "pear": "1F350", "cherries": "1F352",
    },
    "food": {
        "hamburger": "1F354", "pizza": "1F355", "doughnut": "1F369", "ice cream": "1F366",
        "cupcake": "1F9C1", "carrot": "1F955", "corn": "1F33D", "mushroom": "1F344",
    },
    "vehicle": {
        "car": "1F697", "bus": "1F68C", "bicycle": "1F6B2", "rocket": "1F680",
        "sailboat": "26F5", "helicopter": "1F681", "tractor": "1F69C", "locomotive": "1F682",
    },
    "place": {
        "house": "1F3E0", "castle": "1F3F0", "tent": "26FA", "tree": "1F332",
        "cactus": "1F335", "sunflower": "1F33B", "tulip": "1F337", "rainbow": "1F308",
    },
    "thing": {
        "alarm clock": "23F0", "camera": "1F4F7", "light bulb": "1F4A1", "key": "1F511",
        "scissors": "2702", "books": "1F4DA", "umbrella": "2614", "gift": "1F381",
    },
    "play": {
        "football": "26BD", "basketball": "1F3C0", "tennis ball": "1F3BE", "guitar": "1F3B8",
        "drum": "1F941", "trumpet": "1F3BA", "trophy": "1F3C6", "target": "1F3AF",
    },
}  # fmt: skip
_CATALOGUE = [(category, name, code) for category, names in OBJECTS.items() for name, code in names.items()]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Content of a picture: the object, its pose and the two background colours (RGB, 0 to 255)."""

    name: str
    category: str
    object_index: int
    scale: float
    rotation_deg: float
    shift_px: tuple[float, float]
    gradient_deg: float
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]


class SceneSet:
    """All scenes of one seed, numbered from 0; ``image`` is NSD's 0-based 73k index."""

    categories: tuple[str, ...] = tuple(OBJECTS)
    n_objects: int = len(_CATALOGUE)

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def scene(self, image: int) -> Scene:
        """Return the description of a scene.

        :raises SimError: when ``image`` is negative
        """
        if image < 0:
            raise SimError(f"expected a scene number from 0, got {image}")
        rng = np.random.default_rng([self.seed, image])
        index = int(rng.integers(self.n_objects))
        category, name, _ = _CATALOGUE[index]
        hues = rng.uniform(0, 180, 2)
        saturation, value = rng.uniform(40, 200, 2), rng.uniform(110, 255, 2)
        hsv = np.stack([hues, saturation, value], axis=1).astype(np.uint8)[None]
        (first, second) = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0].astype(float).tolist()
        return Scene(
            name=name,
            category=category,
            object_index=index,
            scale=float(rng.uniform(0.8, 1.05)),
            rotation_deg=float(rng.uniform(-20, 20)),
            shift_px=(float(rng.uniform(-6, 6)), float(rng.uniform(-6, 6))),
            gradient_deg=float(rng.uniform(0, 360)),
            colours=(tuple(first), tuple(second)),
        )

    def name(self, image: int) -> str:
        """Name a scene's object."""
        return self.scene(image).name

    def render(self, image: int) -> NDArray[np.uint8]:
        """Render a scene, RGB uint8 ``[64, 64, 3]``."""
        scene = self.scene(image)
        centre = (_SPRITE_PX / 2, _SPRITE_PX / 2)
        turn = cv2.getRotationMatrix2D(centre, scene.rotation_deg, scene.scale)
        matrix = np.asarray(turn, dtype=np.float64)
        matrix[:, 2] += np.array(scene.shift_px) * (_SPRITE_PX / SIZE_PX)
        sprite = cv2.warpAffine(_sprite(scene.object_index), matrix, (_SPRITE_PX, _SPRITE_PX))
        sprite = cv2.resize(sprite, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
        picture = sprite[..., :3] + (1 - sprite[..., 3:]) * _gradient(scene)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _gradient(scene: Scene) -> NDArray[np.float32]:
    """Render the background, a gradient along ``gradient_deg``; float ``[64, 64, 3]``."""
    axis = (np.arange(SIZE_PX, dtype=np.float32) + 0.5) / SIZE_PX - 0.5
    angle = np.deg2rad(scene.gradient_deg)
    along = axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle)
    share = (along / np.sqrt(2) + 0.5).astype(np.float32)[..., None]
    first, second = (np.array(colour, dtype=np.float32) for colour in scene.colours)
    return np.asarray((1 - share) * first + share * second, dtype=np.float32)


@functools.cache
def _sprite(object_index: int) -> NDArray[np.float32]:
    """Rasterise an object: RGB premultiplied by alpha (0 to 255) and alpha (0 to 1), ``[128, 128, 4]``."""
    _, name, code = _CATALOGUE[object_index]
    return rasterise(code, name, _SPRITE_PX)
