"""Benchmarks are run by hand; what they conclude from their figures is tested."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from export.graphs.samplers import bundle_samplers
from train.evaluation.bootstrap import resample
from train.recipe import read_recipe

FOLDER = Path(__file__).parent.parent / "benchmarks"
LIBRARIES = ("accounts", "machine", "runtime", "senders")
BENCHMARKS = sorted(path for path in FOLDER.glob("*.py") if path.stem not in LIBRARIES)
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


@pytest.mark.parametrize(
    ("part", "figure", "value", "broken"),
    [
        ("motion", "error_median_mm", 0.04, "error <= 0.03 mm in the median"),
        ("motion", "error_max_mm", 0.2, "error <= 0.1 mm"),
        ("motion", "p95_ms", 120.0, "p95 <= 100 ms"),
        ("motion", "memory_growth_mb", 50.0, "memory is flat"),
        ("sessions", "right", 197, "sessions: 99% right"),
        ("sessions", "wrong", 1, "sessions: none wrong"),
        ("sessions", "max_s", 11.0, "sessions: <= 10 s"),
    ],
)
def test_a_registration_that_misses_a_goal_is_told(
    load_benchmark: Callable[[str], ModuleType], part: str, figure: str, value: float, broken: str
) -> None:
    registration = load_benchmark("registration")
    results: dict[str, dict[str, Any]] = {
        "motion": {"error_median_mm": 0.01, "error_max_mm": 0.05, "p95_ms": 60.0, "memory_growth_mb": 0.0},
        "peers": {"ours": {"p50_ms": 50.0}, "python-rtspm": {"p50_ms": 150.0}},
        "sessions": {"starts": 200, "right": 198, "wrong": 0, "max_s": 4.0},
    }
    assert all(registration.verdicts(results).values())
    results[part][figure] = value
    assert [goal for goal, holds in registration.verdicts(results).items() if not holds] == [broken]


@pytest.mark.parametrize(
    ("change", "rule", "volume"),
    [
        ({"held": {4: 0.0}}, "came and was not sent", 4),
        ({"held": {1: None}, "states": {1: "missing"}}, "was sent and is lost", 1),
        ({"held": {2: 7.0}}, "has other values than were sent", 2),
        ({"states": {4: "skipped"}}, "did not come and is not missing", 4),
        ({"states": {2: "missing"}}, "came in time and is missing", 2),
    ],
)
def test_an_account_that_does_not_add_up_is_told(
    load_benchmark: Callable[[str], ModuleType], change: dict[str, Any], rule: str, volume: int
) -> None:
    """Volume 4 was dropped by the scanner, 0 was in transit at a kill, 3 was late."""
    accounts = load_benchmark("accounts")
    sent = {index: np.full((2, 2, 2), float(index)) for index in range(4)}
    held = {1: sent[1], 2: sent[2], 3: np.copy(sent[3])}
    states = {0: "missing", 1: "decoded", 2: "skipped", 3: "missing", 4: "missing"}

    def broken() -> list[tuple[str, int]]:
        found = accounts.account(sent, held, states, may_be_lost={0}, may_be_missing={3})
        return [(rule, index) for rule, indices in found.items() for index in indices]

    assert broken() == []
    states |= change.get("states", {})
    for index, value in change.get("held", {}).items():
        held.pop(index, None)
        if value is not None:
            held[index] = np.full((2, 2, 2), value)
    assert (rule, volume) in broken()


def test_the_ideal_observer_is_above_the_linear_readout(load_benchmark: Callable[[str], ModuleType]) -> None:
    """Windows of known responses in noise that voxels and volumes share; the linear one is a ridge."""
    worlds = load_benchmark("worlds")
    rng = np.random.default_rng(0)
    n_trials, n_volumes, n_voxels = 1200, 6, 40
    hrf = rng.uniform(0.2, 1, (n_volumes, n_voxels))
    expected = rng.standard_normal((n_trials, 1, n_voxels)) * hrf
    mixing = rng.standard_normal((n_voxels, n_voxels)) / 6 + np.eye(n_voxels)

    def noise(n_rows: int) -> np.ndarray:
        rows = rng.standard_normal((n_rows, n_voxels)) @ mixing
        for row in range(1, n_rows):
            rows[row] = 0.5 * rows[row - 1] + rows[row]
        return np.asarray(4 * rows)

    windows = expected + noise(n_trials * n_volumes).reshape(n_trials, n_volumes, n_voxels)
    train, test = slice(0, 900), slice(900, n_trials)
    images, times_seen = np.arange(300), np.zeros(300, dtype=np.int64)
    factors = worlds.whitening([noise(4000)])
    white_noise = worlds.whitened(noise(6000).reshape(-1, n_volumes, n_voxels), factors)
    assert np.abs(np.cov(white_noise.T) - np.eye(n_volumes * n_voxels)).mean() < 0.1
    tried, seen = (worlds.whitened(each[test], factors) for each in (expected, windows))
    ideal = worlds.identification(seen, [tried], images, times_seen)
    flat, truth = windows.reshape(n_trials, -1), expected.reshape(n_trials, -1)
    gram = flat[train].T @ flat[train] + 1e3 * np.eye(flat.shape[1])
    read = flat[test] @ np.linalg.solve(gram, flat[train].T @ truth[train])
    linear = worlds.identification(read, [truth[test]], images, times_seen)
    assert 60 < linear["two_way_percent"] < ideal["two_way_percent"] - 5
    assert ideal["two_way_percent"] < 100


def test_noise_ceilings_are_those_that_the_data_were_made_with(
    load_benchmark: Callable[[str], ModuleType],
) -> None:
    worlds = load_benchmark("worlds")
    rng = np.random.default_rng(0)
    images = rng.permutation(np.repeat(np.arange(20_000), 3))
    shares = np.array([0.0, 0.1, 0.4])  # of a single trial's variance
    signal = rng.standard_normal((20_000, 3))[images]
    betas = np.sqrt(shares) * signal + np.sqrt(1 - shares) * rng.standard_normal((60_000, 3))
    triples = worlds.repeated(images)
    assert (images[triples] == np.arange(20_000)[:, None]).all()
    snr = worlds.noise_ceiling_snr(betas, triples)
    assert worlds.ceiling_percent(snr, 1) == pytest.approx(100 * shares, abs=3)
    assert worlds.ceiling_percent(snr, 3)[1] == pytest.approx(100 * 0.1 / (0.1 + 0.9 / 3), abs=4)
    assert worlds.reliability(betas, triples) == pytest.approx(shares, abs=0.05)
