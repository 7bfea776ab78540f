"""What a bundle's sampler tables cost and what they lose, on held-out runs.

    python benchmarks/samplers.py --nsd data/nsd --checkpoint checkpoints/sub-01 --trials 320
        --out docs/results/samplers

Held-out presentations, drawn by seed as ``python -m train evaluate`` draws them, are decoded by the runtime
with every table, from windows preprocessed as the runtime does. Each table's identification and PixCorr stand
with their 95 % bootstrap intervals over trials, and so do their differences from DDIM's on the same trials.
A table loses something measurable in a metric where the interval of the difference lies below zero; named is
the cheapest that does so in none. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from export.build import export_bundle
from export.samplers import bundle_samplers
from nsd import Layout, Stimuli
from realtime.bundle import Bundle, Sampler
from realtime.decode import Decoder
from realtime.engines import open_engine
from train.cache import prepare, subject_cache
from train.checkpoint import load_checkpoint
from train.dataset import averaged_windows
from train.decoding import held_out_groups, images_of
from train.table import METRICS, see

MEASURED = ("Pixels", "EffNet-Lite0", "PixCorr")
N_RESAMPLES = 10_000

Pictures = NDArray[np.uint8]
Values = dict[str, NDArray[np.float64]]
"""By metric, one number per trial."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over trials with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def main() -> None:
    """Decode, score, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nsd", type=Path, required=True, help="root of the data set")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, help="made of it (default: one is exported for this)")
    parser.add_argument("--cache", type=Path, help="prepared recordings (default: in the checkpoint)")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--trials", type=int, default=320)
    parser.add_argument("--seed", type=int, default=1, help="of the trials drawn and of the first noise")
    parser.add_argument("--out", type=Path, required=True, help="two files: OUT.json, OUT.md")
    options = parser.parse_args()
    shown, windows = held_out(options)
    checkpoint = load_checkpoint(options.checkpoint)
    samplers = bundle_samplers(checkpoint.recipe.diffusion)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.bundle or export_bundle(options.checkpoint, Path(scratch) / "bundle").folder
        opened = Bundle.open(folder)
        engine = open_engine(opened, options.engine)
        decoder = Decoder(opened, engine, options.seed)
        decoded = {sampler.name: decode(decoder, windows, sampler) for sampler in samplers}
    values = scores(shown, decoded)
    results = {
        "trials": len(shown),
        "seed": options.seed,
        "engine": engine.description,
        "date": datetime.date.today().isoformat(),
        **judged(samplers, values, options.seed),
    }
    options.out.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    text = as_markdown(results)
    options.out.with_suffix(".md").write_text(text)
    print(text)


def held_out(options: argparse.Namespace) -> tuple[Pictures, NDArray[np.float32]]:
    """Pictures shown ``[n, H, W, 3]`` and windows ``[n, V, T]``, preprocessed causally."""
    checkpoint = load_checkpoint(options.checkpoint)
    recipe, number = checkpoint.recipe, checkpoint.subject.number
    folder = subject_cache(options.cache or options.checkpoint / "cache", number)
    cache = prepare(options.nsd, number, recipe, folder, seed=checkpoint.info.seed)
    groups = held_out_groups(
        cache, recipe, [recipe.window], average=False, seed=options.seed, n_groups=options.trials
    )
    with Stimuli(Layout(options.nsd)) as stimuli:
        shown = stimuli.images(images_of(cache, groups).tolist())
    windows = averaged_windows(cache, groups, recipe.window, "causal", recipe)
    return shown, windows.astype(np.float32)


def decode(decoder: Decoder, windows: NDArray[np.float32], sampler: Sampler) -> Pictures:
    """Pictures ``[n, H, W, 3]`` of windows ``[n, V, T]``."""
    return np.stack([decoder.decode(window, sampler).image for window in tqdm(windows, sampler.name)])


def scores(shown: Pictures, decoded: dict[str, Pictures]) -> dict[str, Values]:
    """Every trial's metrics, by table."""
    seen = see({"shown": shown, **decoded}, None)
    metrics = [metric for metric in METRICS if metric.name in MEASURED]
    return {
        name: {
            metric.name: metric.formula(seen["shown"].features[metric.kind], seen[name].features[metric.kind])
            for metric in metrics
        }
        for name in decoded
    }


def judged(samplers: tuple[Sampler, ...], values: dict[str, Values], seed: int) -> dict[str, Any]:
    """Each table's metrics and their differences from the first's, and the cheapest that loses nothing."""
    first = values[samplers[0].name]
    n_trials = len(next(iter(first.values())))
    draws = np.random.default_rng(seed).integers(n_trials, size=(N_RESAMPLES, n_trials))
    tables = {}
    for sampler in samplers:
        found = values[sampler.name]
        differences = {name: interval(found[name] - first[name], draws) for name in MEASURED}
        tables[sampler.name] = {
            "unet_calls": unet_calls(sampler),
            "metrics": {name: vars(interval(found[name], draws)) for name in MEASURED},
            "differences": {name: vars(each) for name, each in differences.items()},
            "loses": [name for name, each in differences.items() if each.high < 0],
        }
    lossless = [sampler for sampler in samplers if not tables[sampler.name]["loses"]]
    return {
        "reference": samplers[0].name,
        "tables": tables,
        "cheapest_lossless": min(lossless, key=unet_calls).name,
    }


def interval(values: NDArray[np.float64], draws: NDArray[np.int64]) -> Interval:
    """The mean of one number per trial, with its interval over draws ``[resamples, trials]``."""
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))


def unet_calls(sampler: Sampler) -> int:
    """Evaluations of the UNet on one latent: two in a guided step, one in another."""
    return sum(1 if guidance == 1 else 2 for guidance in sampler.guidance)


def as_markdown(results: dict[str, Any]) -> str:
    """The table for people."""
    lines = [
        f"{results['trials']} held-out trials (seed {results['seed']}), streaming; brackets: 95 % intervals "
        f"over trials; Δ: paired difference from {results['reference']}.",
        "",
        "| table | UNet calls | " + " | ".join(f"{name} | Δ" for name in MEASURED) + " | loses |",
        "|---|---|" + "---|---|" * len(MEASURED) + "---|",
    ]
    for name, table in results["tables"].items():
        cells = [
            _cell(metric, table[kind][metric], sign)
            for metric in MEASURED
            for kind, sign in (("metrics", ""), ("differences", "+"))
        ]
        loses = ", ".join(table["loses"]) or "nothing"
        lines.append(f"| {name} | {table['unet_calls']} | {' | '.join(cells)} | {loses} |")
    cheapest = results["cheapest_lossless"]
    return "\n".join([*lines, "", f"The cheapest table that loses nothing measurable is **{cheapest}**.", ""])


def _cell(metric: str, found: dict[str, float], sign: str) -> str:
    scale, digits, unit = (1, 3, "") if metric == "PixCorr" else (100, 1, " %")
    mean, low, high = (f"{scale * found[part]:{sign}.{digits}f}" for part in ("mean", "low", "high"))
    return f"{mean}{unit} [{low}, {high}]"


if __name__ == "__main__":
    main()
