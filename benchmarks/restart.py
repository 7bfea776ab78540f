"""Times how soon recorder and decoder are back when they are started again in a long run.

    python benchmarks/restart.py --out docs/results/restart.json

The run has 10 000 volumes (more than three hours) with 15 724 voxels in the ROI, and a picture at every third
volume. Volumes hold little more than the ROI, so that the journal takes 1 GB, not 28 GB. Times:

- the recorder until it knows what it holds;
- a decoder that finds no checkpoint until it has the newest window, which reads all of the journal;
- the same with the checkpoint that it finds: the goal is 3 s;
- making the state's copy, which a frame may wait for, and writing it, which none waits for;
- a status, which is made at every change.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from machine import machine

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.locate import demo_data
from realtime.bundle.statistics import VoxelStatistics
from realtime.preprocessing.spikes import SpikeRule
from realtime.record.run_journal import RunJournal
from realtime.record.run_json import EngineUsed, decoders_of, new_run_file
from realtime.runs.checkpoint import CHECKPOINT
from realtime.runs.decode_loop import DecodeLoop
from realtime.runs.follow import Following
from realtime.runs.open import open_run
from realtime.runs.run import Run
from realtime.runs.status import run_state, status_of

SHAPE, N_VOXELS, PICTURE_EVERY, PICTURE_PX, GOAL_S = (28, 24, 24), 15_724, 3, 425, 3.0
RESTARTS = 5


def at_full_size(bundle: Bundle) -> Bundle:
    """The demo's bundle with a region of full size; no network is used."""
    roi = msgspec.structs.replace(bundle.spec.roi, n_voxels=N_VOXELS, shape=SHAPE)
    prior = VoxelStatistics(mean=np.full(N_VOXELS, 1300, np.float32), sd=np.full(N_VOXELS, 20, np.float32))
    mask = (np.arange(np.prod(SHAPE)) < N_VOXELS).reshape(SHAPE)
    return replace(bundle, spec=msgspec.structs.replace(bundle.spec, roi=roi), roi_mask=mask, prior=prior)


def record(out: Path, bundle: Bundle, n_volumes: int) -> Path:
    """Write the journal of a run: a baseline with drift and noise, and pictures."""
    spec, rng = bundle.spec, np.random.default_rng(0)
    start = wire.RunStart(
        run_id="long",
        subject=spec.subject,
        tr_s=spec.tr_s,
        n_volumes=n_volumes,
        shape=SHAPE,
        affine=spec.roi.affine,
        dtype="int16",
    )
    info = new_run_file(
        start,
        bundle_name=spec.name,
        bundle_sha256=bundle.sha256,
        decoders=decoders_of(spec),
        seed=0,
        spikes=SpikeRule(),
    )
    blurred = cv2.GaussianBlur(rng.integers(0, 256, (PICTURE_PX, PICTURE_PX, 3), dtype=np.uint8), (0, 0), 2)
    png = memoryview(cv2.imencode(".png", blurred)[1].tobytes())
    baseline = rng.uniform(600, 2000, SHAPE)
    journal = RunJournal.create(out, info)
    for index in range(n_volumes):
        if index % PICTURE_EVERY == 0:
            journal.add_marker(
                wire.Marker(run_id="long", onset_volume=index, name="a picture"), png, time.time()
            )
        voxels = baseline * (1 + 1e-6 * index) + 20 * rng.standard_normal(SHAPE)
        message = wire.Volume(run_id="long", index=index, acquired_s=index * spec.tr_s)
        journal.add_volume(message, memoryview(voxels.astype(np.int16).tobytes()), time.time())
    journal.close()
    return journal.path


def reopened(path: Path) -> float:
    """Seconds until a recorder that is started again knows what it holds."""
    begun = time.perf_counter()
    journal = RunJournal.reopen(path)
    journal.held  # noqa: B018  # what its answer to the scanner names
    took_s = time.perf_counter() - begun
    journal.close()
    return took_s


def followed(path: Path, bundle: Bundle) -> tuple[float, Run]:
    """Seconds until a decoder that is started again has the newest window; and the run."""
    decoding = DecodeLoop([], _Nothing(), lambda _: None)
    begun = time.perf_counter()
    run = open_run(path, bundle, EngineUsed(name="none", description="none"), "shown")
    following = Following(
        run,
        decoding,
        news=asyncio.sleep,
        send=lambda _: None,
        changed=lambda: None,
        is_current=lambda: False,
    )
    asyncio.run(following.follow())
    took_s = time.perf_counter() - begun
    decoding.stop()
    assert run.position == run.start.n_volumes - 1
    assert run.queue.is_waiting
    return took_s, run


class _Nothing:
    """Decodes nothing: only the time until a decode could begin is measured."""

    def next(self, *_: Any) -> None:
        raise AssertionError

    def failed(self, *_: Any) -> None:
        raise AssertionError


def measure(n_volumes: int, work: Path) -> dict[str, Any]:
    """All figures."""
    bundle = at_full_size(Bundle.open(demo_data("bundle")))
    path = record(work, bundle, n_volumes)
    recorder_s = [reopened(path) for _ in range(RESTARTS)]
    before_s, run = followed(path, bundle)
    run.folder.let_go()
    n_bytes = (path / CHECKPOINT).stat().st_size
    after_s = []
    for _ in range(RESTARTS):
        took_s, run = followed(path, bundle)
        after_s.append(took_s)
        run.folder.let_go()
    took_s, run = followed(path, bundle)
    saved = run.checkpoint()
    assert saved
    figures = {
        "volumes": n_volumes,
        "voxels": bundle.spec.roi.n_voxels,
        "recorder_s": max(recorder_s),
        "decoder_without_checkpoint_s": before_s,
        "decoder_s": max(after_s),
        "checkpoint_mb": n_bytes / 1e6,
        "copy_ms": 1e3 * _median_s(run.checkpoint),
        "write_ms": 1e3 * _median_s(lambda: run.folder.write_file(CHECKPOINT, saved.as_bytes())),
        "status_ms": 1e3 * _median_s(lambda: _status(run, bundle)),
        "holds": {
            f"decoder <= {GOAL_S} s": max(after_s) <= GOAL_S,
            f"recorder <= {GOAL_S} s": max(recorder_s) <= GOAL_S,
        },
    }
    run.folder.let_go()
    return figures


def _status(run: Run, bundle: Bundle) -> object:
    state = run_state(run, is_open=True, silent_s=0.0)
    return status_of(run, state, "", "", bundle.spec, bundle.sha256, is_demo=True)


def _median_s(do: Callable[[], object]) -> float:
    times_s = []
    for _ in range(20):
        begun = time.perf_counter()
        do()
        times_s.append(time.perf_counter() - begun)
    return statistics.median(times_s)


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=int, default=10_000, help="of the run (default 10000)")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.volumes, Path(folder))
    text = json.dumps(figures | {"machine": machine("numpy", "scipy")}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
