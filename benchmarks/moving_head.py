"""Decodes a head that lies elsewhere and moves: with and without registration, beside one that does neither.

    python benchmarks/moving_head.py --out docs/results/moving-head.json

`sim synthesize --raw` writes the demo's subject anew with the side that a scanner sees: a grid of its own, a
head that lies 8 mm and 5 degrees from the decoder's, motion of up to 2 mm. Of every run, three series go
through the runtime's own preprocessing and decoder: the corrected one, which lies on the decoder's grid; the
raw one, registered volume by volume; and the raw one as it is, taken at the region's place in scanner
coordinates. Each picture's window is decoded with the same sampler and noise. Volumes are not censored, so
that all three are scored on the same trials.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from machine import machine
from numpy.typing import NDArray
from tqdm import tqdm

from export.bundle.reference import add_reference
from nsd import Layout, Run
from realtime.bundle.bundle import Bundle
from realtime.bundle.locate import demo_data
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine, usable_cores
from realtime.preprocessing.stream import StreamingPreprocessor
from realtime.record.image import decode_png
from realtime.record.run_json import Registration
from realtime.report.identification import hog, identification, pixels, stack
from realtime.runs.head_position import Head, MovedSlices, Placed
from sim.raw import RawRun
from sim.raw_settings import read_raw_settings
from sim.recording import Recording
from sim.settings import read_settings
from sim.synthesize import synthesize

SEED = 1
SAMPLER = "dpm++-12"
TRUSTED = 30
"""From this volume on, the statistics of a run are trusted."""
Rows = Callable[[int], NDArray[Any]]


def series(bundle: Bundle, layout: Layout, session: int, run: int) -> dict[str, tuple[Rows, list[Placed]]]:
    """How the region's voxels [V] of each volume are found, by the name of the way; and what was found."""
    corrected = Run(layout, bundle.spec.subject, session, run)
    raw = RawRun(layout, subject=bundle.spec.subject, session=session, run=run)
    affine = raw.geometry.affine
    found: dict[str, list[Placed]] = {"corrected": [], "registered": [], "uncorrected": []}
    head, slices = Head(bundle, Registration(), raw.geometry.shape), MovedSlices(bundle)

    def place(way: str, by: Head | MovedSlices) -> Rows:
        def rows(index: int) -> NDArray[Any]:
            placed = by.place(index, raw.volume(index), affine)
            found[way].append(placed)
            return placed.row

        return rows

    return {
        "corrected": (lambda index: corrected.volume(index)[bundle.roi_mask], found["corrected"]),
        "registered": (place("registered", head), found["registered"]),
        "uncorrected": (place("uncorrected", slices), found["uncorrected"]),
    }


def windows(bundle: Bundle, rows: Rows, n_volumes: int, ends: set[int]) -> Iterator[NDArray[np.float32]]:
    """The windows [V, T] that end at the given volumes, as a live run would have decoded them."""
    stream = StreamingPreprocessor.for_bundle(bundle, n_volumes, bundle.spec.tr_s)
    for index in range(max(ends) + 1):
        stream.push_row(index, rows(index))
        window = stream.window() if index in ends else None
        if window is not None:
            yield window


def measured(bundle: Bundle, layout: Layout, runs: list[tuple[int, int]]) -> dict[str, Any]:
    """Identification by each way over the trials of all runs, and how far the motion found is off."""
    decoder = Decoder(bundle, open_engine(bundle, "onnxruntime-cpu", threads=usable_cores()))
    sampler, delay = bundle.sampler(SAMPLER), bundle.decoder().window.delay_volumes
    true: list[NDArray[np.uint8]] = []
    decoded: dict[str, list[NDArray[np.uint8]]] = {"corrected": [], "registered": [], "uncorrected": []}
    off_mm, fd_mm = [], []
    for session, run in tqdm(runs, desc="runs", unit="run"):
        with Recording(layout, subject=bundle.spec.subject, session=session, run=run) as recording:
            n_volumes = recording.start.n_volumes
            onsets = {marker.onset_volume + delay: marker.onset_volume for marker in recording.markers}
            ends = {end: onset for end, onset in onsets.items() if TRUSTED <= end < n_volumes}
            true += [decode_png(recording.picture_png(onset)) for onset in ends.values()]
        for way, (rows, placed) in series(bundle, layout, session, run).items():
            for window in windows(bundle, rows, n_volumes, set(ends)):
                decoded[way].append(decoder.decode(window, sampler).image)
            if way == "registered":
                truth = RawRun(layout, subject=bundle.spec.subject, session=session, run=run).geometry.motion
                off_mm += apart_mm(placed, truth)
                fd_mm += [each.motion.framewise_displacement or 0.0 for each in placed if each.motion]
    return {
        "runs": len(runs),
        "trials": len(true),
        "identification": {
            way: {name: scored(true, images, of) for name, of in (("pixels", pixels), ("features", hog))}
            for way, images in decoded.items()
        },
        "motion_off_mm": {"median": float(np.median(off_mm)), "max": float(np.max(off_mm))},
        "framewise_displacement_mm": {"mean": float(np.mean(fd_mm)), "max": float(np.max(fd_mm))},
    }


def scored(true: list[Any], decoded: list[Any], features: Callable[[Any], Any]) -> dict[str, Any]:
    """Two-way identification with its interval."""
    true_rows, decoded_rows = (stack([features(each) for each in images]) for images in (true, decoded))
    score = identification(true_rows, decoded_rows)
    found: dict[str, Any] = msgspec.to_builtins(score)
    return found


def apart_mm(placed: list[Placed], truth: NDArray[np.float64]) -> list[float]:
    """How far the motion that was found is off at each volume, at 50 mm from the centre at most."""
    found = []
    for index, each in enumerate(placed):
        if each.motion is None:
            continue
        relative = truth[index] - truth[0]
        turned = 50.0 * relative[3:]
        apart = np.abs(np.array(each.motion.in_mm()) - np.concatenate([relative[:3], turned]))
        found.append(float(apart.max()))
    return found


def main() -> None:
    """Make the subject, decode it, write the figures, and fail if registration loses two points or more."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=1, help="sessions to write (default %(default)s)")
    parser.add_argument("--runs", type=int, nargs="+", default=[10], help="of each (default 10, held out)")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "nsd"
        synthesize(
            root,
            settings=read_settings(),
            seed=SEED,
            subject=1,
            n_sessions=options.sessions,
            n_stimuli=0,
            raw=read_raw_settings(None),
        )
        layout = Layout(root)
        bundle = add_reference(demo_data("bundle"), layout.mean(1), Path(folder) / "bundle")
        runs = [(session, run) for session in range(1, options.sessions + 1) for run in options.runs]
        figures = measured(bundle, layout, runs) | {"sampler": SAMPLER, "machine": machine("scipy", "numpy")}
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    for name, score in figures["identification"]["registered"].items():
        if figures["identification"]["corrected"][name]["value"] - score["value"] > 0.02:
            raise SystemExit(f"registration loses more than 2 points of identification in {name}")


if __name__ == "__main__":
    main()
