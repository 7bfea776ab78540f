"""Either side dies at a few random moments; ``benchmarks/kills.py`` does it at as many as one likes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType


def test_nothing_is_lost_whoever_dies_when(
    load_benchmark: Callable[[str], ModuleType], tiny_bundle: Path, tiny_nsd: Path, tmp_path: Path
) -> None:
    """The run is complete in the end, and a replay makes its frames again bit for bit."""
    kills = load_benchmark("kills")
    n_frames, deaths = kills.killed_run(
        tiny_bundle,
        tiny_nsd,
        1,
        tmp_path / "work",
        victims=["scanner", "all", "all", "scanner"],
        rng=random.Random(3),
        speed=60.0,
    )
    assert n_frames > 0
    assert deaths == {"scanner": 2, "all": 2}
