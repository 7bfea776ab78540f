"""Opens a world's pictures and a subject's cortex by its settings."""

from __future__ import annotations

from sim.errors import SimError
from sim.forward import ForwardModel, Scenes
from sim.settings import CortexSettings, NaturalSettings, PlainSettings


def open_scenes(settings: CortexSettings, seed: int) -> Scenes:
    """Return the pictures of a world and a seed."""
    match settings:
        case PlainSettings():
            from sim.scenes import SceneSet  # here, so that a replay loads one world's only

            return SceneSet(seed)
        case NaturalSettings():
            from sim.natural_scenes import NaturalScenes

            return NaturalScenes(settings, seed)
    raise SimError(f"expected settings of a world, got {type(settings).__name__}")


def open_cortex(settings: CortexSettings, seed: int, subject: int) -> ForwardModel:
    """Return the forward model of a world's subject."""
    match settings:
        case PlainSettings():
            from sim.cortex import Cortex

            return Cortex(settings, seed, subject)
        case NaturalSettings():
            from sim.natural_cortex import NaturalCortex

            return NaturalCortex(settings, seed, subject)
    raise SimError(f"expected settings of a world, got {type(settings).__name__}")
