"""Decodes runs of scanners whose TR is not the decoder's: resampled in time, beside one at the decoder's TR.

    python benchmarks/another_tr.py --out docs/results/another-tr.json

The demo's subject is written anew, with the raw side of a scanner of each TR, on the decoder's own grid, of a
head that lies still: what differs is time alone. The runs go through the runtime's own preprocessing,
resampling and decoder, with the same sampler and noise, and all are scored on the same trials. A marker names
the volume that is being acquired when a picture begins. Where pictures begin between volumes, two other ways
are measured beside that: the nearest volume, and the true onset, which no marker says. And once more the
scanner's volumes are taken for the decoder's, as if nothing were resampled.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from machine import machine
from numpy.typing import NDArray
from tqdm import tqdm

from nsd import TR_S, Layout
from realtime.bundle import spec as bundle_spec
from realtime.bundle.bundle import Bundle
from realtime.bundle.locate import demo_data
from realtime.bundle.match import delay_at
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine, usable_cores
from realtime.preprocessing.resample import ScannerWindow, spline_weights
from realtime.preprocessing.stream import StreamingPreprocessor
from realtime.record.image import decode_png
from realtime.report.identification import hog, identification, pixels, stack, two_way
from sim.raw import RawRun, write_raw
from sim.raw_settings import RawSettings, read_raw_settings
from sim.recording import RawRecording, Recording
from sim.settings import read_settings
from sim.synthesize import synthesize

SEED = 1
SAMPLER = "dpm++-12"
TRS_S = (TR_S, 1.0, 1.5, 1.6, 2.0)
FIRST_S, LAST_S = 50.0, 280.0
"""Pictures between these times of a run are scored: their windows are whole and trusted at every TR."""
LONGEST_VOLUMES = 16
"""More volumes than any window is made of."""
Window = NDArray[np.float32]


def still(tr_s: float) -> RawSettings:
    """A scanner on the corrected series' own grid, and a head that lies there and does not move."""
    edge_mm, no_margin_mm = read_settings().voxel_mm, 1e-12
    return replace(
        read_raw_settings(None),
        voxel_mm=(edge_mm, edge_mm, edge_mm),
        margin_mm=(no_margin_mm, no_margin_mm, no_margin_mm),
        oblique_deg=0,
        aim_mm=0,
        session_shift_mm=0,
        session_turn_deg=0,
        between_runs_mm=0,
        motion_mm=0,
        swallows_per_min=0,
        jerks_per_run=0,
        tr_s=tr_s,
    )


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the window of a picture is found: the volume it ends with, and what is made of the newest ones."""

    end: int
    of: Callable[[Window], Window]


def ways(window: bundle_spec.Window, tr_s: float, onset_s: float, marked: int) -> dict[str, Way]:
    """The ways for one picture, by name.

    :param marked: the volume that its marker names
    """
    if tr_s == TR_S:
        return {"the decoder's": Way(end=marked + window.delay_volumes, of=ScannerWindow(window, TR_S).of)}
    resampled = ScannerWindow(window, TR_S, tr_s)
    as_live = Way(end=marked + resampled.delay_volumes, of=resampled.of)
    as_it_is = Way(end=marked + window.delay_volumes, of=ScannerWindow(window, TR_S).of)
    if abs(onset_s - marked * tr_s) < 1e-6:  # the picture begins with the volume
        names = ("resampled", "nearest volume", "true onset")
        return {"not resampled": as_it_is, **dict.fromkeys(names, as_live)}
    end_s = onset_s + window.delay_volumes * TR_S
    end = math.ceil(end_s / tr_s - 1e-6)
    weights = spline_weights(window.length_volumes, TR_S, tr_s, end * tr_s - end_s)

    def at_true_onset(z_scores: Window) -> Window:
        return (z_scores[:, -weights.shape[1] :] @ weights.T).astype(np.float32)

    return {
        "resampled": as_live,
        "nearest volume": Way(end=int(onset_s / tr_s + 0.5) + resampled.delay_volumes, of=resampled.of),
        "true onset": Way(end=end, of=at_true_onset),
        "not resampled": as_it_is,
    }


def z_scores(bundle: Bundle, raw: RawRun, ends: set[int]) -> Iterator[tuple[int, Window]]:
    """The z-scores [V, n] of the newest volumes at some of them, as a live run has them."""
    tr_s, n_volumes = raw.geometry.tr_s, raw.geometry.n_volumes
    stream = StreamingPreprocessor.for_bundle(bundle, n_volumes, tr_s, window_volumes=LONGEST_VOLUMES)
    for index in range(max(ends) + 1):
        stream.push(index, raw.volume(index))
        found = stream.window() if index in ends else None
        if found is not None:
            yield index, found


def decoded_run(
    bundle: Bundle, decoder: Decoder, layout: Layout, run: dict[str, Any]
) -> dict[str, list[Any]]:
    """The pictures of a run that are scored, as ``shown``, and what was decoded of them by each way."""
    sampler, window = bundle.sampler(SAMPLER), bundle.decoder().window
    images: dict[str, list[Any]] = {}
    with Recording(layout, **run) as recording:
        onsets = [marker.onset_volume for marker in recording.markers]
        scored = {onset * TR_S: onset for onset in onsets if FIRST_S <= onset * TR_S <= LAST_S}
        images["shown"] = [decode_png(recording.picture_png(onset)) for onset in scored.values()]
    for tr_s in tqdm(TRS_S, desc="TR", unit="TR", leave=False):
        shutil.rmtree(layout.root / "nsddata_rawdata", ignore_errors=True)
        write_raw(layout.root, subject=run["subject"], n_sessions=run["session"], settings=still(tr_s))
        with RawRecording(layout, **run) as recording:
            marked = dict(zip((onset * TR_S for onset in onsets), recording.markers, strict=False))
        found = {onset_s: ways(window, tr_s, onset_s, marked[onset_s].onset_volume) for onset_s in scored}
        ends = {way.end for each in found.values() for way in each.values()}
        by_end = dict(z_scores(bundle, RawRun(layout, **run), ends))
        for each in found.values():
            decoded = {
                way: decoder.decode(way.of(by_end[way.end]), sampler).image for way in set(each.values())
            }
            for name, way in each.items():
                images.setdefault(f"{tr_s:.2f} {name}", []).append(decoded[way])
    return images


def compared(images: dict[str, list[Any]]) -> dict[str, Any]:
    """Identification by each way, and by how much it is less than at the decoder's TR, trial by trial."""
    found: dict[str, Any] = {}
    for feature, of in (("pixels", pixels), ("features", hog)):
        rows = {name: stack([of(image) for image in each]) for name, each in images.items()}
        shown = rows.pop("shown")
        reference = two_way(shown, rows[f"{TR_S:.2f} the decoder's"])
        for name, decoded in rows.items():
            lost = reference - two_way(shown, decoded)
            drawn = np.random.default_rng(0).integers(lost.size, size=(10_000, lost.size))
            low, high = np.quantile(lost[drawn].mean(axis=1), [0.025, 0.975])
            entry = msgspec.to_builtins(identification(shown, decoded))
            entry["lost"] = {"value": float(lost.mean()), "low": float(low), "high": float(high)}
            found.setdefault(name, {})[feature] = entry
    return found


def main() -> None:
    """Make the subject, decode it at every TR, and write the figures after each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=3, help="sessions to write (default %(default)s)")
    parser.add_argument("--run", type=int, default=10, help="of each (default 10, held out)")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    bundle = Bundle.open(demo_data("bundle"))
    decoder = Decoder(bundle, open_engine(bundle, "onnxruntime-cpu", threads=usable_cores()))
    subject, n_sessions = bundle.spec.subject, options.sessions
    delays = {f"{tr_s:.2f}": delay_at(bundle.decoder().window, TR_S, tr_s) for tr_s in TRS_S}
    images: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root, cortex = Path(folder), read_settings()
        synthesize(root, settings=cortex, seed=SEED, subject=subject, n_sessions=n_sessions, n_stimuli=0)
        for session in tqdm(range(1, n_sessions + 1), desc="runs", unit="run"):
            run = {"subject": subject, "session": session, "run": options.run}
            for name, found in decoded_run(bundle, decoder, Layout(root), run).items():
                images.setdefault(name, []).extend(found)
            figures = {
                "runs": session,
                "trials": len(images["shown"]),
                "sampler": SAMPLER,
                "delay": {tr: {"volumes": volumes, "added_s": s} for tr, (volumes, s) in delays.items()},
                "identification": compared(images),
                "machine": machine("scipy", "numpy"),
            }
            if options.out:
                options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
