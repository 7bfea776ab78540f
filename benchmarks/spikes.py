"""Measures the detection of spikes in synthetic runs: false alarms in still runs, and detected head jerks.

    python benchmarks/spikes.py

It synthesizes a subject whose head is still and one whose head jerks 1.5 times per run
(``sim/worlds/plain.toml``), and preprocesses their runs as the runtime does. The motion files show which
volumes have jerks.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nsd import TR_S, Layout, Run, read_roi, task_runs
from realtime.bundle.spec import Preprocessing
from realtime.bundle.statistics import VoxelStatistics
from realtime.preprocessing.spikes import SpikeRule
from realtime.preprocessing.stream import StreamingPreprocessor
from sim.settings import read_settings
from sim.synthesize import synthesize

SETTINGS = Preprocessing(high_pass_hz=0.0078125, warmup_volumes=30, prior_volumes=10.0)
JERK_MM = 0.4


def subject(
    root: Path, spikes_per_run: float, sessions: int, seed: int
) -> Iterator[tuple[set[int], set[int], int]]:
    """Yield, for each run of a new subject, censored volumes, volumes with jerks, and number of volumes."""
    settings = dataclasses.replace(read_settings(), spikes_per_run=spikes_per_run)
    synthesize(root, settings=settings, seed=seed, subject=1, n_sessions=sessions, n_stimuli=0)
    layout = Layout(root)
    roi = read_roi(layout, 1)
    for session in range(1, sessions + 1):
        for run in task_runs(1, session):
            rows = Run(layout, 1, session, run).roi_series(roi)[:225]
            yield censored(rows), jerks(np.loadtxt(layout.motion(1, session, run))[:225]), len(rows)


def censored(rows: np.ndarray) -> set[int]:
    """Return the volumes of a run [n, V] that the runtime censors."""
    voxels = rows.shape[1]
    mask = np.ones((voxels, 1, 1), dtype=bool)
    prior = VoxelStatistics(mean=np.full(voxels, 1000, np.float32), sd=np.full(voxels, 20, np.float32))
    stream = StreamingPreprocessor(mask, len(rows), TR_S, SETTINGS, prior, 6, SpikeRule())
    return {index for index, row in enumerate(rows) if stream.push_row(index, row).status == "censored"}


def jerks(motion: np.ndarray) -> set[int]:
    """Return the volumes at which the translations in ``motion`` [n, 6] jump for one volume."""
    shift = motion[:, :3]
    jump_mm = np.linalg.norm(shift[1:-1] - (shift[:-2] + shift[2:]) / 2, axis=1)
    return set((np.flatnonzero(jump_mm > JERK_MM) + 1).tolist())


def main() -> None:
    """Count detections and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=3, help="sessions of 12 runs per subject (default 3)")
    parser.add_argument("--seed", type=int, default=11, help="seed of the first subject (default 11)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        still = list(subject(Path(folder) / "still", 0.0, options.sessions, options.seed))
        restless = list(subject(Path(folder) / "restless", 1.5, options.sessions, options.seed + 1))
    n_false = sum(len(found) for found, _, _ in still)
    print(f"still: {n_false} of {sum(n for _, _, n in still)} volumes are censored")
    jerked = [(found, moved, {volume + 1 for volume in moved} - moved) for found, moved, _ in restless]
    print(
        f"jerks: {sum(len(found & moved) for found, moved, _ in jerked)} of "
        f"{sum(len(moved) for _, moved, _ in jerked)} are censored, "
        f"{sum(len(found & after) for found, _, after in jerked)} of the volumes after them, "
        f"and {sum(len(found - moved - after) for found, moved, after in jerked)} others"
    )


if __name__ == "__main__":
    main()
