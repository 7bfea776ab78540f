"""Measures what a decoder loses because the runtime knows only the past, with and without a prior of drifts.

    python benchmarks/streaming_gap.py --nsd data/nsd --out docs/results/streaming-gap

Presentations of held-out runs are decoded from windows of three kinds: *offline*, detrended over the whole
run; *free*, causal, with a free fit of the drifts; *prior*, causal, with the bundle's prior of the drifts, or
else with the one that ``train`` would measure on the training runs. The results of each kind are how much of
the offline window's variance it reproduces (R2), and the metrics of its pictures with paired differences
from offline, with 95 % bootstrap intervals. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from samplers import N_RESAMPLES, cell, decode, drawn, held_out_options, held_out_runs, interval, scores
from tqdm import tqdm

from nsd import Layout, Run, RunKey, RunTrial, Stimuli, read_roi, runs
from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import DriftPrior
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine
from realtime.preprocessing.drift import cosine_basis
from realtime.preprocessing.stream import causal_windows, z_scored
from train.data.prior import measure_priors
from train.evaluation.bootstrap import resample

METRICS = ("Pixels", "HOG", "EffNet-Lite0", "PixCorr")

Windows = NDArray[np.float32]
Rows = NDArray[np.float32]


def main() -> None:
    """Make the windows, decode them, score, and write the results."""
    parser = held_out_options(__doc__ or "")
    parser.add_argument("--sampler", help="name of its sampler (default: its first)")
    parser.add_argument("--threads", type=int, help="of the engine")
    options = parser.parse_args()
    bundle, layout = Bundle.open(options.bundle), Layout(options.nsd)
    trials = drawn(bundle, layout, options.trials, options.seed)
    images = np.array([item.trial.image for item in trials], dtype=np.int64)
    with Stimuli(layout) as stimuli:
        shown = stimuli.images(images.tolist())
    prior = bundle.spec.drift_prior or measured(bundle, layout)
    windows = all_windows(bundle, layout, trials, prior)
    engine = open_engine(bundle, options.engine, options.threads)
    decoder, sampler = Decoder(bundle, engine, options.seed), bundle.sampler(options.sampler)
    decoded = {kind: decode(decoder, each, sampler) for kind, each in windows.items()}
    values = scores(shown, decoded, METRICS)
    resampling = resample(images, N_RESAMPLES, options.seed)
    results = {
        "bundle": bundle.sha256,
        "drift_prior": msgspec.to_builtins(prior),
        "trials": len(shown),
        "seed": options.seed,
        "sampler": sampler.name,
        "engine": engine.description,
        "date": datetime.date.today().isoformat(),
        "kinds": {
            kind: {
                "window_r2": explained(windows[kind], windows["offline"]),
                "metrics": {name: vars(interval(found[name], resampling)) for name in METRICS},
                "differences": {
                    name: vars(interval(found[name] - values["offline"][name], resampling))
                    for name in METRICS
                },
            }
            for kind, found in values.items()
        },
    }
    options.out.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    text = as_markdown(results)
    options.out.with_suffix(".md").write_text(text)
    print(text)


def measured(bundle: Bundle, layout: Layout) -> DriftPrior | None:
    """Measure the prior of the drifts on the runs that were not held out."""
    subject, held_out = bundle.spec.subject, set(held_out_runs(bundle))
    roi = read_roi(layout, subject)
    trains = [key for key in runs(layout, subject) if key not in held_out]
    rows = (Run(layout, *key).roi_series(roi) for key in tqdm(trains, "prior"))
    return measure_priors(rows, bundle.spec.preprocessing.high_pass_hz).drift


def all_windows(
    bundle: Bundle, layout: Layout, trials: list[RunTrial], prior: DriftPrior | None
) -> dict[str, Windows]:
    """Return the windows ``[n, V, T]`` of presentations in order of runs, of every kind."""
    spec, window = bundle.spec, bundle.decoder().window
    roi, length = read_roi(layout, spec.subject), window.length_volumes

    def offline(rows: Rows, ends: list[int]) -> Windows:
        whole = z_scored(rows, cosine_basis(len(rows), spec.tr_s, spec.preprocessing.high_pass_hz))
        return np.stack([whole[end - length + 1 : end + 1].T for end in ends])

    def causal(drift_prior: DriftPrior | None) -> Callable[[Rows, list[int]], Windows]:
        return lambda rows, ends: causal_windows(
            rows, spec.tr_s, spec.preprocessing, bundle.prior, length, ends, drift_prior
        )

    kinds = {"offline": offline, "free": causal(None), "prior": causal(prior)}
    ends: dict[RunKey, list[int]] = {}
    for item in trials:
        ends.setdefault(item.run, []).append(item.trial.onset_volume + window.delay_volumes)
    parts: dict[str, list[Windows]] = {kind: [] for kind in kinds}
    for key, of_run in tqdm(ends.items(), "runs"):
        rows = Run(layout, *key).roi_series(roi)
        for kind, make in kinds.items():
            parts[kind].append(make(rows, of_run))
    return {kind: np.concatenate(each) for kind, each in parts.items()}


def explained(windows: Windows, offline: Windows) -> float:
    """Return R2: the share of the offline windows' variance that others reproduce."""
    return float(1 - np.square(windows - offline).sum() / np.square(offline).sum())


def as_markdown(results: dict[str, Any]) -> str:
    """Format the results as Markdown."""
    lines = [
        f"| windows | R2 | {' | '.join(f'{name} | Δ' for name in METRICS)} |",
        "|---|---|" + "---|---|" * len(METRICS),
    ]
    for kind, found in results["kinds"].items():
        cells = [
            cell(name, found[part][name], sign)
            for name in METRICS
            for part, sign in (("metrics", ""), ("differences", "+"))
        ]
        lines.append(f"| {kind} | {found['window_r2']:.3f} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
