"""Simulates hours of scanning with faults and checks that no volume is lost and memory does not grow.

    python benchmarks/soak.py --hours 8 --out soak.json

Runs of 225 volumes are sent one after the other to `realtime serve` in its own process, with 1 % of each
fault that `sim` can inject. A bundle with a shorter TR compresses time (``--times``), including timeouts and
deadlines. After each run every planned volume must have one state, acknowledged volumes must be in the
journal, and volumes that the scanner dropped must be missing. The runtime's memory may grow by 5 % at most
after the first simulated hour. Run folders are deleted after the check.
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
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from machine import machine

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.locate import demo_data
from realtime.bundle.spec import write_spec
from realtime.record.reader import read_recorded
from sim.faults import KINDS, FaultyLink, FaultyScan, draw_plan, late_tr
from sim.scanner import Scanner, ZmqLink
from sim.sender import Sender

N_VOLUMES, RATE, GROWTH = 225, 0.01, 0.05


class Noise:
    """A run of noise on the bundle's grid."""

    def __init__(self, bundle: Bundle, number: int) -> None:
        spec = bundle.spec
        self.start = wire.RunStart(
            run_id=f"soak-{number:05d}",
            subject=spec.subject,
            tr_s=spec.tr_s,
            n_volumes=N_VOLUMES,
            shape=spec.roi.shape,
            affine=spec.roi.affine,
            dtype="int16",
        )
        self._baseline = np.random.default_rng(0).uniform(600, 2000, spec.roi.shape)
        self._number = number

    def volume(self, index: int) -> bytes:
        """Return the voxels of a volume."""
        noise = np.random.default_rng((self._number, index)).standard_normal(self.start.shape)
        return (self._baseline + 20 * noise).astype("<i2").tobytes()

    def picture_png(self, onset_volume: int) -> bytes:
        """Raise, because the run has no pictures."""
        raise AssertionError(onset_volume)


def faster_bundle(folder: Path, times: float) -> Bundle:
    """Copy the demo's bundle with a shorter TR; drifts per volume stay the same."""
    shutil.copytree(demo_data("bundle"), folder)
    spec = Bundle.open(folder).spec
    high_pass_hz = spec.preprocessing.high_pass_hz * times
    preprocessing = msgspec.structs.replace(spec.preprocessing, high_pass_hz=high_pass_hz)
    write_spec(folder, msgspec.structs.replace(spec, tr_s=spec.tr_s / times, preprocessing=preprocessing))
    return Bundle.open(folder)


@contextmanager
def served(bundle: Bundle, out: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the runtime; yield its process and address."""
    command = [sys.executable, "-m", "realtime", "serve", "--headless", "--source", "tcp://127.0.0.1:0"]
    command += ["--bundle", str(bundle.folder), "--out", str(out)]
    with (out.parent / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"volumes from (tcp://\S+),", line):
                yield process, found.group(1)
                break
        else:
            raise SystemExit(f"the runtime did not start: {(out.parent / 'serve.log').read_text()}")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        process.stdout.close()
    said = (out.parent / "serve.log").read_text()
    if process.returncode or "Traceback" in said:
        raise SystemExit(f"the runtime ended with code {process.returncode}; its log: {said[-4000:]}")


def one_run(bundle: Bundle, address: str, out: Path, number: int) -> tuple[Counter[str], int]:
    """Send a run, check it and delete its folder; return counts of volumes by state, and of faults."""
    scan = Noise(bundle, number)
    plan = draw_plan(dict.fromkeys(KINDS, RATE), number, scan.start)
    faulty = FaultyScan(scan, plan)
    sender = Sender(faulty.start, [], speed=1.0, late_tr=late_tr(plan, N_VOLUMES))
    with ZmqLink(address) as link:
        complete = Scanner(faulty, FaultyLink(link, plan), sender, tell=lambda _: None).replay()
    folder = out / scan.start.run_id
    recorded = read_recorded(folder)
    states = {row.volume: row.state for row in recorded.rows}
    dropped = {index for index, fault in plan.items() if fault.kind == "drop"}
    checks = {
        "the run was closed complete": complete and recorded.info.state == "closed",
        "every volume has one state": sorted(states) == list(range(N_VOLUMES)),
        "what was acknowledged is in the journal": recorded.received == set(range(N_VOLUMES)) - dropped,
        "what was dropped is missing": all(states.get(index) == "missing" for index in dropped),
        "the run has one take": not (out / f"{scan.start.run_id}_take-2").exists(),
    }
    if failed := [name for name, holds in checks.items() if not holds]:
        raise SystemExit(f"{scan.start.run_id} in {folder}: failed checks: {'; '.join(failed)}")
    while not (folder / "report.html").exists():  # the last file that the runtime writes
        time.sleep(0.05)
    shutil.rmtree(folder)
    return Counter(states.values()), len(plan)


def soak(hours: float, times: float) -> dict[str, Any]:
    """Send runs until ``hours`` are simulated; return the figures."""
    counts: Counter[str] = Counter()
    memory_mb: list[float] = []
    n_runs, n_faults, begun_s = 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bundle = faster_bundle(Path(folder) / "bundle", times)
        out = Path(folder) / "runs"
        run_hours = N_VOLUMES * bundle.spec.tr_s * times / 3600
        with served(bundle, out) as (process, address):
            while n_runs * run_hours < hours:
                states, faults = one_run(bundle, address, out, n_runs)
                n_runs, n_faults, counts = n_runs + 1, n_faults + faults, counts + states
                memory_mb.append(psutil.Process(process.pid).memory_info().rss / 1e6)
                print(f"{n_runs * run_hours:6.2f} h  {memory_mb[-1]:7.1f} MB  {dict(states)}", flush=True)
    after_an_hour = memory_mb[int(1 / run_hours) :]
    grown = max(after_an_hour) / after_an_hour[0] - 1 if after_an_hour else None
    return {
        "machine": machine(),
        "hours": n_runs * run_hours,
        "times": times,
        "wall_s": time.monotonic() - begun_s,
        "runs": n_runs,
        "faults": n_faults,
        "states": dict(counts),
        "memory_mb": memory_mb,
        "grown_after_an_hour": grown,
        "flat": None if grown is None else grown <= GROWTH,
    }


def main() -> None:
    """Run the simulation, write the figures, and fail if memory grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=8.0, help="hours to simulate (default 8)")
    parser.add_argument("--times", type=float, default=40.0, help="speed; 40 is a TR of 33 ms (default 40)")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    figures = soak(options.hours, options.times)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps({name: value for name, value in figures.items() if name != "memory_mb"}, indent=2))
    if figures["flat"] is False:
        raise SystemExit(f"memory grew by {100 * figures['grown_after_an_hour']:.1f} % after the first hour")


if __name__ == "__main__":
    main()
