"""A tiny synthetic subject for all tests of the simulator, made by the real code on a small grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sim.settings import NaturalSettings, PlainSettings, read_settings
from sim.synthesize import synthesize

SEED = 3
N_PICTURES = 120


@dataclass(frozen=True)
class Tiny:
    root: Path
    settings: PlainSettings
    seed: int


def tiny_settings() -> PlainSettings:
    settings = read_settings("plain")
    assert isinstance(settings, PlainSettings)
    return replace(settings, grid=(8, 8, 8), n_roi_voxels=100, shell_voxels=2.0)


def tiny_natural_settings() -> NaturalSettings:
    settings = read_settings("natural")
    assert isinstance(settings, NaturalSettings)
    return replace(settings, grid=(8, 8, 8), n_roi_voxels=100, shell_voxels=2.0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """One session of subject 1; read only."""
    root = tmp_path_factory.mktemp("tiny") / "nsd"
    settings = tiny_settings()
    synthesize(root, settings=settings, seed=SEED, subject=1, n_sessions=1, n_stimuli=N_PICTURES)
    return Tiny(root, settings, SEED)
