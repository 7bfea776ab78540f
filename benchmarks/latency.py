"""Measures the latency from a volume's last byte to its frame at real size, without the decoder's time.

    python benchmarks/full_size_export.py --recipe demo --voxels 15724 --forms compact --work W --keep
    python benchmarks/latency.py --bundle W/compact --out docs/results/latency.json

A run of 226 volumes of 81 x 104 x 83 float32, one every 0.5 s, is sent over ZeroMQ to `realtime serve`, which
masks 15 724 voxels, writes the journal, detrends, and decodes with the bundle's quickest sampler. The run's
table contains the time of each stage. The stages besides brain, denoise and vae must take at most 25 ms at
the 99th percentile.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from machine import machine

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import write_spec
from realtime.record.reader import Recorded, read_recorded
from sim.scanner import Scanner, ZmqLink
from sim.sender import Sender

N_VOLUMES, TR_S, LIMIT_MS = 226, 0.5, 25.0


class Head:
    """A run of noise on a baseline; a few distinct volumes repeat, which does not affect the measurement."""

    def __init__(self, bundle: Bundle) -> None:
        spec = bundle.spec
        self.start = wire.RunStart(
            run_id="latency",
            subject=spec.subject,
            tr_s=spec.tr_s,
            n_volumes=N_VOLUMES,
            shape=spec.roi.shape,
            affine=spec.roi.affine,
            dtype="float32",
        )
        rng = np.random.default_rng(0)
        baseline = rng.uniform(600, 2000, spec.roi.shape).astype("<f4")
        noise = (rng.standard_normal(spec.roi.shape, dtype=np.float32) for _ in range(8))
        self._volumes = [(baseline + 20 * each).tobytes() for each in noise]

    def volume(self, index: int) -> bytes:
        """Return the voxels of a volume."""
        return self._volumes[index * 5 % len(self._volumes)]

    def picture_png(self, onset_volume: int) -> bytes:
        """Raise, because the run has no pictures."""
        raise AssertionError(onset_volume)


def main() -> None:
    """Send the run and write the figures of its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="bundle for volumes of this size")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = quicker(options.bundle, Path(scratch) / "bundle")
        found = figures(scan(bundle, Path(scratch) / "runs", options.engine))
    text = json.dumps(found | {"limit_ms": LIMIT_MS, "tr_s": TR_S, "machine": machine()}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def quicker(source: Path, folder: Path) -> Bundle:
    """Copy a bundle, with the TR of this benchmark."""
    shutil.copytree(source, folder)
    write_spec(folder, msgspec.structs.replace(Bundle.open(source).spec, tr_s=TR_S))
    return Bundle.open(folder)


def scan(bundle: Bundle, out: Path, engine: str) -> Recorded:
    """Send a run to a runtime in a process of its own."""
    sampler = min(bundle.spec.samplers, key=lambda each: sum(1 + (g != 1) for g in each.guidance))
    command = [sys.executable, "-m", "realtime", "serve", "--headless", "--source", "tcp://127.0.0.1:0"]
    command += ["--bundle", str(bundle.folder), "--out", str(out), "--engine", engine]
    command += ["--sampler", sampler.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout
        address = next(
            match[1] for line in served.stdout if (match := re.search(r"volumes from (\S+), runs", line))
        )
        head = Head(bundle)
        with ZmqLink(address) as link:
            Scanner(head, link, Sender(head.start, [], speed=1.0), tell=lambda _: None).replay()
        served.send_signal(signal.SIGINT)
    return read_recorded(out / head.start.run_id)


def figures(recorded: Recorded) -> dict[str, Any]:
    """Return the latency of the stages besides decoding, over all frames."""
    rows = [row for row in recorded.rows if row.total_ms is not None]
    own = {
        "journal": [row.journal_ms or 0.0 for row in rows],
        "preprocess": [row.preprocess_ms or 0.0 for row in rows],
        "wait": [row.wait_ms or 0.0 for row in rows],
    }
    around = np.sum([*own.values()], axis=0)
    decode = [(row.brain_ms or 0.0) + (row.denoise_ms or 0.0) + (row.vae_ms or 0.0) for row in rows]
    return {
        "engine": recorded.info.engine.description,
        "frames": len(rows),
        "skipped": sum(row.state == "skipped" for row in recorded.rows),
        "around_the_decoder_ms": quantiles(around),
        **{f"{name}_ms": quantiles(np.array(values)) for name, values in own.items()},
        "decode_ms": quantiles(np.array(decode)),
    }


def quantiles(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """Return median, 95th and 99th percentile and maximum."""
    levels = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(float(np.quantile(values, q)), 2) for name, q in levels.items()}


if __name__ == "__main__":
    main()
