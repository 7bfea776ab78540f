"""Simulates hours of scanning with faults, kills and floods: no volume is lost and memory does not grow.

    python benchmarks/soak.py --hours 10 --out soak.json

Runs of 225 volumes are sent one after the other to `realtime serve` in its own process, with 1 % of each
fault that `sim` can inject. During every second run, one of the runtime's processes is killed (``kill -9``),
or the runtime is flooded. A bundle with a shorter TR compresses time (``--times``), including timeouts and
deadlines. After each run every planned volume must have one state, acknowledged volumes must be in the
journal, and volumes that the scanner dropped must be missing. No process may need more than 5 % more memory
than in the first simulated hour. Run folders are deleted after the check.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from attacks import Target, duplicates, garbage, http_requests
from kills import LAST_SHARE
from machine import machine
from runtime import PATIENCE_S, Runtime, is_reported

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.locate import demo_data
from realtime.bundle.spec import write_spec
from realtime.record.reader import read_recorded
from sim.faults import KINDS, FaultyLink, FaultyScan, draw_plan, late_tr
from sim.scanner import Scanner, ZmqLink
from sim.sender import Sender

N_VOLUMES, RATE, GROWTH = 225, 0.01, 0.05
KILLED = ("recorder", "decoder", "page", "serve", "all")
FLOODS = {"duplicates": duplicates, "garbage": garbage, "http": http_requests}


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


def disturb(
    kind: str, runtime: Runtime, run_id: str, length_s: float, rng: random.Random, attacker: Executor
) -> None:
    """Kill a process of the runtime at a random moment of a run, or flood it all the time."""
    if kind in KILLED:
        time.sleep(rng.uniform(0, LAST_SHARE * length_s))
        runtime.kill(kind)
    elif kind in FLOODS:
        target = Target(
            address=runtime.address,
            url=runtime.url,
            run_id=run_id,
            keys=runtime.work / "realtime-dynadiff" / "keys" / "scanner",
            until_s=time.time() + length_s,
        )
        attacker.submit(FLOODS[kind], target).result()


def one_run(
    bundle: Bundle, runtime: Runtime, out: Path, number: int, disturbed: Callable[[str], None]
) -> tuple[Counter[str], int]:
    """Send a run, check it and delete its folder; return counts of volumes by state, and of faults.

    :param disturbed: called with the run's id while the run is sent
    """
    scan = Noise(bundle, number)
    plan = draw_plan(dict.fromkeys(KINDS, RATE), number, scan.start)
    faulty = FaultyScan(scan, plan)
    sender = Sender(faulty.start, [], speed=1.0, late_tr=late_tr(plan, N_VOLUMES))
    with ThreadPoolExecutor(1) as pool, ZmqLink(runtime.address) as link:
        disturbing = pool.submit(disturbed, scan.start.run_id)
        complete = Scanner(faulty, FaultyLink(link, plan), sender, tell=lambda _: None).replay()
        disturbing.result()
    folder = out / scan.start.run_id
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_reported(folder) and time.monotonic() < deadline_s:
        runtime.check()
        time.sleep(0.05)
    recorded = read_recorded(folder)
    states = {row.volume: row.state for row in recorded.rows}
    dropped = {index for index, fault in plan.items() if fault.kind == "drop"}
    checks = {
        "the run was closed complete": complete and recorded.info.state == "closed",
        "every volume has one state": sorted(states) == list(range(N_VOLUMES)),
        "what was acknowledged is in the journal": recorded.received == set(range(N_VOLUMES)) - dropped,
        "what was dropped is missing": all(states.get(index) == "missing" for index in dropped),
        "the run is reported": (folder / "report.html").exists(),
        "the run has one take": not (out / f"{scan.start.run_id}_take-2").exists(),
    }
    if failed := [name for name, holds in checks.items() if not holds]:
        raise SystemExit(f"{scan.start.run_id} in {folder}: failed checks: {'; '.join(failed)}")
    shutil.rmtree(folder)
    return Counter(states.values()), len(plan)


def soak(hours: float, times: float) -> dict[str, Any]:
    """Send runs until ``hours`` are simulated; return the figures."""
    rng = random.Random(0)
    counts: Counter[str] = Counter()
    disturbances: Counter[str] = Counter()
    memory_mb: dict[str, list[float]] = defaultdict(list)
    n_runs, n_faults, begun_s = 0, 0, time.monotonic()
    work = Path(tempfile.mkdtemp())  # stays if something fails
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as attacker:
        os.environ["XDG_CONFIG_HOME"] = str(work)  # where the runtime and this scanner have their keys
        bundle = faster_bundle(work / "bundle", times)
        run_s = N_VOLUMES * bundle.spec.tr_s
        run_hours = run_s * times / 3600
        options = ["--bundle", str(bundle.folder), "--out", str(work / "runs"), "--port", "0"]
        with Runtime(options, work=work) as runtime:
            while n_runs * run_hours < hours:
                kind = rng.choice([*KILLED, *FLOODS]) if n_runs % 2 else "none"

                def disturbed(run_id: str, kind: str = kind) -> None:
                    disturb(kind, runtime, run_id, run_s, rng, attacker)

                states, faults = one_run(bundle, runtime, work / "runs", n_runs, disturbed)
                n_runs, n_faults, counts = n_runs + 1, n_faults + faults, counts + states
                disturbances[kind] += 1
                for role, process in runtime.processes.items():
                    memory_mb[role].append(round(process.memory_info().rss / 1e6, 1))
                now_mb = {role: values[-1] for role, values in memory_mb.items()}
                print(f"{n_runs * run_hours:6.2f} h  {kind}  {now_mb} MB  {dict(states)}", flush=True)
        said = (work / "realtime.log").read_text()
    if "Traceback" in said:
        raise SystemExit(f"the runtime printed a traceback, in {work / 'realtime.log'}")
    shutil.rmtree(work)
    grown = {role: growth(values, int(1 / run_hours)) for role, values in memory_mb.items()}
    return {
        "machine": machine(),
        "hours": n_runs * run_hours,
        "times": times,
        "wall_s": time.monotonic() - begun_s,
        "runs": n_runs,
        "faults": n_faults,
        "disturbances": dict(disturbances),
        "states": dict(counts),
        "memory_mb": memory_mb,
        "grown_after_an_hour": grown,
        "flat": all(each <= GROWTH for each in grown.values()),
    }


def growth(values: list[float], n_first: int) -> float:
    """By which share the largest value exceeds the largest of the first ones."""
    return max(values) / max(values[: max(1, n_first)]) - 1


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
        raise SystemExit(f"memory grew after the first hour: {figures['grown_after_an_hour']}")


if __name__ == "__main__":
    main()
