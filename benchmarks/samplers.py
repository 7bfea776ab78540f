"""Measures the cost and the quality of a bundle's sampler tables on held-out runs.

    python benchmarks/samplers.py --nsd data/nsd --out docs/results/samplers

The runtime decodes presentations of held-out runs with every table of the bundle, from windows with the
runtime's preprocessing. For each table the results are identification and PixCorr, and their differences from
the first table on the same trials, with 95 % bootstrap intervals. A table loses measurably in a metric if the
interval of the difference lies below zero. The results name the cheapest table that loses measurably in no
metric, and the cheapest that in no metric can lose half a point (0.005). Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nsd import Layout, Run, RunKey, RunTrial, Stimuli, read_roi, run_trials
from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Sampler
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine
from realtime.preprocessing.stream import causal_windows
from train.evaluation.bootstrap import PerTrial, Resampling, resample
from train.evaluation.results_table import METRICS, see

MEASURED = ("Pixels", "EffNet-Lite0", "PixCorr")
N_RESAMPLES = 10_000
MARGIN = 0.005
"""Half a point of identification, a loss that is not visible."""
DEMO = Path(__file__).parent.parent / "realtime" / "demo_data" / "bundle"

Pictures = NDArray[np.uint8]
Values = dict[str, PerTrial]
"""One number per trial, by metric."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over trials with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def held_out_options(description: str) -> argparse.ArgumentParser:
    """Options of a measurement on held-out trials."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nsd", type=Path, required=True, help="root of the data set")
    parser.add_argument("--bundle", type=Path, default=DEMO, help="bundle to measure (default: the demo's)")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--trials", type=int, default=320)
    parser.add_argument("--seed", type=int, default=1, help="seed of the trials and the noise")
    parser.add_argument("--out", type=Path, required=True, help="two files: OUT.json, OUT.md")
    return parser


def main() -> None:
    """Decode with every table, score, and write the results."""
    options = held_out_options(__doc__ or "").parse_args()
    bundle, layout = Bundle.open(options.bundle), Layout(options.nsd)
    trials = drawn(bundle, layout, options.trials, options.seed)
    images = np.array([item.trial.image for item in trials], dtype=np.int64)
    with Stimuli(layout) as stimuli:
        shown = stimuli.images(images.tolist())
    windows = streamed(bundle, layout, trials)
    engine = open_engine(bundle, options.engine)
    decoder = Decoder(bundle, engine, options.seed)
    samplers = bundle.spec.samplers
    decoded = {sampler.name: decode(decoder, windows, sampler) for sampler in samplers}
    results = {
        "bundle": bundle.sha256,
        "trials": len(shown),
        "seed": options.seed,
        "engine": engine.description,
        "date": datetime.date.today().isoformat(),
        **judged(samplers, scores(shown, decoded), resample(images, N_RESAMPLES, options.seed)),
    }
    options.out.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    text = as_markdown(results)
    options.out.with_suffix(".md").write_text(text)
    print(text)


def held_out_runs(bundle: Bundle) -> list[RunKey]:
    """Return the runs that were held out from training, from the bundle's provenance."""
    (stage,) = (stage for stage in bundle.spec.provenance if stage.name == "checkpoint")
    noted = stage.notes.get("held_out_runs", "").split()
    if not noted:
        raise SystemExit(f"{bundle.folder}: expected held-out runs in the provenance, found none")
    return [RunKey(bundle.spec.subject, *(int(part) for part in run.split("/"))) for run in noted]


def drawn(bundle: Bundle, layout: Layout, n: int, seed: int) -> list[RunTrial]:
    """Draw at most ``n`` held-out presentations whose windows are not warming, in order."""
    window, warmup = bundle.decoder().window, bundle.spec.preprocessing.warmup_volumes
    usable = [
        item
        for item in run_trials(layout, held_out_runs(bundle))
        if warmup - 1 <= item.trial.onset_volume + window.delay_volumes < Run(layout, *item.run).n_volumes
    ]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(usable))[:n])
    return [usable[index] for index in chosen]


def streamed(bundle: Bundle, layout: Layout, trials: Sequence[RunTrial]) -> NDArray[np.float32]:
    """Return windows ``[n, V, T]`` of presentations in order of runs, with the runtime's preprocessing."""
    spec, window = bundle.spec, bundle.decoder().window
    roi = read_roi(layout, spec.subject)
    ends: dict[RunKey, list[int]] = {}
    for item in trials:
        ends.setdefault(item.run, []).append(item.trial.onset_volume + window.delay_volumes)
    parts = [
        causal_windows(
            Run(layout, *key).roi_series(roi),
            spec.tr_s,
            spec.preprocessing,
            bundle.prior,
            window.length_volumes,
            run_ends,
            spec.drift_prior,
        )
        for key, run_ends in tqdm(ends.items(), "runs")
    ]
    return np.concatenate(parts)


def decode(decoder: Decoder, windows: NDArray[np.float32], sampler: Sampler) -> Pictures:
    """Decode windows ``[n, V, T]`` to pictures ``[n, H, W, 3]``."""
    return np.stack([decoder.decode(window, sampler).image for window in tqdm(windows, sampler.name)])


def scores(
    shown: Pictures, decoded: dict[str, Pictures], measured: Sequence[str] = MEASURED
) -> dict[str, Values]:
    """Return the metrics of every trial, by table."""
    seen = see({"shown": shown, **decoded}, None)
    metrics = [metric for metric in METRICS if metric.name in measured]
    return {
        name: {
            metric.name: metric.formula(seen["shown"].features[metric.kind], seen[name].features[metric.kind])
            for metric in metrics
        }
        for name in decoded
    }


def judged(samplers: Sequence[Sampler], values: dict[str, Values], resampling: Resampling) -> dict[str, Any]:
    """Return each table's metrics and differences from the first table, and the cheapest good tables."""
    first = values[samplers[0].name]
    tables = {}
    for sampler in samplers:
        found = values[sampler.name]
        differences = {name: interval(found[name] - first[name], resampling) for name in MEASURED}
        tables[sampler.name] = {
            "unet_calls": unet_calls(sampler),
            "metrics": {name: vars(interval(found[name], resampling)) for name in MEASURED},
            "differences": {name: vars(each) for name, each in differences.items()},
            "loses": [name for name, each in differences.items() if each.high < 0],
        }
    lossless = [sampler for sampler in samplers if not tables[sampler.name]["loses"]]
    within = [sampler for sampler in samplers if _worst(tables[sampler.name]) > -MARGIN]
    return {
        "reference": samplers[0].name,
        "tables": tables,
        "cheapest_lossless": min(lossless, key=unet_calls).name,
        "cheapest_within_margin": min(within, key=unet_calls).name,
    }


def _worst(table: dict[str, Any]) -> float:
    """Return the lowest end of a table's intervals of differences: the most that it may lose."""
    return min(float(each["low"]) for each in table["differences"].values())


def interval(values: PerTrial, resampling: Resampling) -> Interval:
    """Return the mean over trials with its interval."""
    low, high = resampling.interval(values)
    return Interval(mean=float(values.mean()), low=low, high=high)


def unet_calls(sampler: Sampler) -> int:
    """Return the number of UNet evaluations: two per guided step, one per unguided step."""
    return sum(1 if guidance == 1 else 2 for guidance in sampler.guidance)


def as_markdown(results: dict[str, Any]) -> str:
    """Format the results as Markdown."""
    lines = [
        f"{results['trials']} held-out trials (seed {results['seed']}), streaming; brackets: 95 % intervals "
        f"over pictures; Δ: paired difference from {results['reference']}.",
        "",
        "| table | UNet calls | " + " | ".join(f"{name} | Δ" for name in MEASURED) + " | loses |",
        "|---|---|" + "---|---|" * len(MEASURED) + "---|",
    ]
    for name, table in results["tables"].items():
        cells = [
            cell(metric, table[kind][metric], sign)
            for metric in MEASURED
            for kind, sign in (("metrics", ""), ("differences", "+"))
        ]
        loses = ", ".join(table["loses"]) or "nothing"
        lines.append(f"| {name} | {table['unet_calls']} | {' | '.join(cells)} | {loses} |")
    lossless, within = results["cheapest_lossless"], results["cheapest_within_margin"]
    said = (
        f"The cheapest table that loses nothing measurable is **{lossless}**; the cheapest that in no metric "
        f"can lose half a point (0.005 of PixCorr), by the ends of the intervals, is **{within}**."
    )
    return "\n".join([*lines, "", said, ""])


def cell(metric: str, found: dict[str, float], sign: str) -> str:
    """Format a metric with its interval."""
    scale, digits, unit = (1, 3, "") if metric == "PixCorr" else (100, 1, " %")
    mean, low, high = (f"{scale * found[part]:{sign}.{digits}f}" for part in ("mean", "low", "high"))
    return f"{mean}{unit} [{low}, {high}]"


if __name__ == "__main__":
    main()
