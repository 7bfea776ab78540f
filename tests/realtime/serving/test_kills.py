"""Either side dies at a few random moments; ``benchmarks/kills.py`` does it at as many as one likes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

KILLS = Path(__file__).parents[3] / "benchmarks" / "kills.py"


@pytest.fixture(scope="module")
def kills() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_kills", KILLS)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_nothing_is_lost_whoever_dies_when(
    kills: ModuleType, tiny_bundle: Path, tiny_nsd: Path, tmp_path: Path
) -> None:
    deaths = kills.killed_run(tiny_bundle, tiny_nsd, 1, tmp_path / "runs", moments=4, seed=3, speed=40.0)
    assert deaths == {"runtime": 2, "scanner": 2}
