"""Benchmarks are run by hand; what they conclude from their figures is tested."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from export.graphs.samplers import bundle_samplers
from train.evaluation.bootstrap import resample
from train.recipe import read_recipe

FOLDER = Path(__file__).parent.parent / "benchmarks"
BENCHMARKS = sorted(path for path in FOLDER.glob("*.py") if path.stem not in ("machine", "runtime"))
SAMPLERS = bundle_samplers(read_recipe().diffusion)


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_says_how_it_is_run(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, where torch is loaded already."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert f"python benchmarks/{path.name}" in capsys.readouterr().out


def test_a_loss_is_measurable_when_its_interval_is_below_zero(
    load_benchmark: Callable[[str], ModuleType],
) -> None:
    samplers = load_benchmark("samplers")
    rng = np.random.default_rng(0)
    level = {"Pixels": 0.95, "EffNet-Lite0": 0.75, "PixCorr": 0.45}
    trial = {name: rng.normal(0, 0.2, 300) for name in level}

    def values(loss: float, spread: float) -> dict[str, np.ndarray]:
        return {
            name: level[name] + trial[name] + rng.normal(-loss if name == "PixCorr" else 0, spread, 300)
            for name in level
        }

    found = {sampler.name: values(0.0, 0.02) for sampler in SAMPLERS}
    found["dpm++-6-g4"] = values(0.02, 0.02)  # seen because trials are paired: they scatter ten times as much
    result = samplers.judged(SAMPLERS, found, resample(np.arange(300), 2_000, seed=1))
    assert result["tables"]["dpm++-6-g4"]["loses"] == ["PixCorr"]
    assert result["tables"]["ddim-20"]["differences"]["Pixels"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    lossless = [sampler for sampler in SAMPLERS if not result["tables"][sampler.name]["loses"]]
    assert result["cheapest_lossless"] == min(lossless, key=samplers.unet_calls).name != "dpm++-6-g4"
    assert [samplers.unet_calls(sampler) for sampler in SAMPLERS] == [40, 32, 24, 19, 20, 16, 16, 13, 12, 10]
    assert result["cheapest_within_margin"] in {sampler.name for sampler in SAMPLERS} - {"dpm++-6-g4"}
    text = samplers.as_markdown({"trials": 300, "seed": 1, **result})
    assert f"loses nothing measurable is **{result['cheapest_lossless']}**" in text
    assert "| dpm++-6-g4 | 10 | 9" in text
