"""Simulates hours of scanning by every way that volumes come in, with a head that moves: all are accounted.

    python benchmarks/soak_sources.py --hours 10 --out docs/results/soak_sources.json

Runs of 225 volumes of a moving head, on a grid of the scanner's own, are sent to `realtime serve` by own
messages, Pyneal's and AFNI's protocols, C-STORE, and as files of several formats, some of which get their
bytes late. All are registered to the decoder's reference. The scanner drops, delays, reorders and spoils 1 %
of the volumes each, where the way can carry that. In every second run a process of the runtime is killed
(``kill -9``), or its page or its way in is flooded. A bundle with a shorter TR compresses time (``--times``).

After each run every planned volume must have one state, what was sent must be in the journal with the values
that were sent, and only that may be lost which the documentation of the way lets a crash lose. Each way has a
runtime of its own; ``--lanes`` run beside each other. What fails is written down, its folder is kept, and the
simulation goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import shutil
import socket
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
from accounts import check
from attacks import Target, garbage, http_requests
from kills import LAST_SHARE
from machine import machine
from runtime import Runtime, is_reported
from senders import WAYS, Way, send
from soak import N_VOLUMES, RATE, faster_bundle
from tqdm import tqdm

from export.bundle.reference import add_reference
from nsd import TR_S, Layout, task_runs
from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.record.run_json import read_run_file
from sim.errors import SimError
from sim.faults import FaultyScan, Plan, draw_plan
from sim.raw import RawRun
from sim.raw_settings import read_raw_settings
from sim.settings import read_settings
from sim.synthesize import synthesize

VOXEL_MM = 3.0
"""Of the scanner's grid, coarse so that hours are simulated in minutes."""
FIRST_FAULT, LAST_FAULTLESS = 3, 10
"""Where runs are not announced, the first volumes tell which number is the first, the last ones the end."""
ALWAYS, IN_TURN = ("recorder", "all"), ("decoder", "serve", "page", "http", "garbage")
"""What happens to every way, and what to some, in every second run."""
RUN_HOURS = N_VOLUMES * TR_S / 3600
PATIENCE_S = 300.0
"""For the report of a run that was sent."""


class MovingHead:
    """The raw side of a recorded run."""

    def __init__(self, root: Path, number: int, run_id: str, tr_s: float) -> None:
        runs = task_runs(1, 1)
        raw = RawRun(Layout(root), subject=1, session=1, run=runs[number % len(runs)])
        self.start = wire.RunStart(
            run_id=run_id,
            subject=1,
            tr_s=tr_s,
            n_volumes=raw.geometry.n_volumes,
            shape=raw.geometry.shape,
            affine=msgspec.convert(raw.geometry.affine.tolist(), wire.Affine),
            dtype="int16",
        )
        self._volumes = [raw.volume(index).astype("<i2").tobytes() for index in range(self.start.n_volumes)]

    def volume(self, index: int) -> bytes:
        """Return the voxels of a volume."""
        return self._volumes[index]

    def picture_png(self, onset_volume: int) -> bytes:
        """Raise, because the run has no pictures."""
        raise AssertionError(onset_volume)


def prepare(work: Path, times: float) -> None:
    """Write a subject with its raw side, and a bundle with a reference and a shorter TR."""
    raw = dataclasses.replace(read_raw_settings(None), voxel_mm=(VOXEL_MM,) * 3)
    synthesize(
        work / "nsd",
        settings=read_settings(),
        seed=1,
        subject=1,
        n_sessions=1,
        n_stimuli=0,
        raw=raw,
    )
    faster = faster_bundle(work / "faster", times)
    add_reference(faster.folder, Layout(work / "nsd").mean(1), work / "bundle")


def faults_of(way: Way, start: wire.RunStart, seed: int) -> Plan:
    """Draw faults that the way can carry."""
    plan = draw_plan(dict.fromkeys(way.kinds, RATE), seed, start)
    if way.is_announced:
        return plan
    stop = start.n_volumes - LAST_FAULTLESS
    return {index: fault for index, fault in plan.items() if FIRST_FAULT <= index < stop}


def rubbish(target: Target) -> dict[str, int]:
    """Write files of random bytes into a watched folder, or send random bytes to a port."""
    rng, n_sent = random.Random(0), 0
    kind, _, place = target.address.partition(":")
    while target.is_on:
        data = rng.randbytes(rng.randrange(1, 2**16))
        if kind == "folder":
            ending = rng.choice((".dcm", ".nii", ".nii.gz", ".hdr", ".tmp", ""))
            (Path(place) / f"rubbish-{time.time_ns()}{ending}").write_bytes(data)
        else:
            host, _, port = place.removeprefix("//").rpartition(":")
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1) as raw:
                raw.sendall(data)
        n_sent += 1
        time.sleep(0.02)
    return {"messages": n_sent}


def disturb(kind: str, runtime: Runtime, folders: Folders, length_s: float, attacker: Executor) -> None:
    """Kill a process at a random moment of a run that has begun, or flood the runtime all the time."""
    if kind == "none" or not folders.wait_for_volume():
        return
    if kind in ("http", "garbage"):
        has_port = "://" in runtime.address
        target = Target(
            address=runtime.address if has_port or kind == "garbage" else runtime.url,
            url=runtime.url,
            run_id="",
            keys=_keys(runtime),
            until_s=time.time() + length_s * LAST_SHARE,
        )
        flood = rubbish if kind == "garbage" and not runtime.address.startswith("tcp:") else garbage
        attacker.submit(http_requests if kind == "http" else flood, target).result()
        return
    time.sleep(random.uniform(0, (LAST_SHARE - 0.1) * length_s))
    runtime.kill(kind)


def _keys(runtime: Runtime) -> Path:
    return runtime.work / "realtime-dynadiff" / "keys" / "scanner"


class Folders:
    """The run folders that came since the last check."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._known: set[Path] = set()
        """Those of runs that failed a check."""

    def new(self) -> list[Path]:
        """In the order in which they were opened."""
        found = {path.parent for path in self.out.glob("[!.]*/run.json")} - self._known
        return sorted(found, key=lambda path: read_run_file(path).opened_utc)

    def wait_for_volume(self) -> bool:
        """Wait until the run that is sent has a volume; files from before a start are left alone."""
        return _waits(lambda: any((path / "volumes.journal").stat().st_size > 10_000 for path in self.new()))

    def wait_for_reports(self, n_runs: int) -> bool:
        """Wait until all runs that were sent are reported."""
        return _waits(lambda: sum(map(is_reported, self.new())) >= n_runs)

    def keep(self) -> None:
        """Leave those of a failed check."""
        self._known |= set(self.new())


def _waits(condition: Callable[[], bool]) -> bool:
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.02)
    return True


def one_run(
    way: Way, name: str, number: int, kind: str, runtime: Runtime, folders: Folders, attacker: Executor
) -> dict[str, Any]:
    """Send a run, disturb the runtime meanwhile, and account for it."""
    work = runtime.work.parent
    tr_s = Bundle.open(work / "bundle").spec.tr_s
    run_id = f"{name.split(',')[0]}-soak_run-{number + 1:03d}"
    head = MovingHead(work / "nsd", number, run_id, tr_s)
    plan = faults_of(way, head.start, number)
    scan = FaultyScan(head, plan)
    begun_s, failed = time.monotonic(), []
    with ThreadPoolExecutor(1) as pool:
        disturbing = pool.submit(disturb, kind, runtime, folders, N_VOLUMES * tr_s, attacker)
        try:
            attempts = send(way, scan, plan, runtime.address, _keys(runtime))
        except SimError as error:
            attempts, failed = [], [f"the sender could not send the run: {error}"]
        disturbing.result()
    sent_s = time.monotonic() - begun_s
    if not folders.wait_for_reports(len(attempts)):
        failed.append("not every run is reported")
    result: dict[str, Any] = {
        "way": name,
        "run": run_id,
        "disturbed": kind,
        "faults": len(plan),
        "attempts": [],
    }
    if len(folders.new()) != len(attempts):
        failed.append(f"{len(attempts)} runs were sent, recorded are {[path.name for path in folders.new()]}")
    for sent, folder in zip(attempts, folders.new(), strict=False):
        found, broken = check(way, scan, plan, sent, folder)
        result["attempts"].append(found)
        failed += [f"{folder}: {each}" for each in broken]
    if failed:
        folders.keep()
    else:
        for folder in folders.new():
            shutil.rmtree(folder)
    result |= {"failed": failed, "sent_s": round(sent_s, 1), "wall_s": round(time.monotonic() - begun_s, 1)}
    result["memory_mb"] = {
        role: round(process.memory_info().rss / 1e6, 1) for role, process in runtime.processes.items()
    }
    return result


def one_way(name: str, n_runs: int, work: Path) -> list[dict[str, Any]]:
    """Send runs by one way to a runtime of its own."""
    way, place = WAYS[name], work / name.replace(", ", "-").replace(" ", "-")
    (place / "export").mkdir(parents=True)
    turn = list(WAYS).index(name)
    random.seed(turn)
    kinds = [*ALWAYS, *((IN_TURN * 2)[turn % len(IN_TURN) :][:3])]
    source = f"folder:{place / 'export'}" if way.source == "folder" else way.source
    options = ["--bundle", str(work / "bundle"), "--out", str(place / "runs"), "--port", "0"]
    options += [] if way.is_announced else ["--volumes", str(N_VOLUMES)]
    folders, results = Folders(place / "runs"), []
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as attacker,
        Runtime(options, work=place, source=source) as runtime,
    ):
        for number in range(n_runs):
            kind = kinds[number // 2 % len(kinds)] if number % 2 else "none"
            results.append(one_run(way, name, number, kind, runtime, folders, attacker))
            with (work / "runs.jsonl").open("a") as lines:
                lines.write(json.dumps(results[-1]) + "\n")
    if "Traceback" in (said := (place / "realtime.log").read_text()):
        results[-1]["failed"].append(f"{said.count('Traceback')} tracebacks in {place / 'realtime.log'}")
    return results


def figures_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What the runs of one way, or of all, come to."""
    attempts = [attempt for result in results for attempt in result["attempts"]]
    memory: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for role, mb in result["memory_mb"].items():
            memory[role].append(mb)
    states: Counter[str] = Counter()
    for attempt in attempts:
        states.update(attempt["states"])
    return {
        "runs": len(results),
        "volumes": sum(states.values()),
        "states": dict(states),
        "faults": sum(result["faults"] for result in results),
        "disturbances": dict(Counter(result["disturbed"] for result in results)),
        "runs_cut_by_a_crash": len(attempts) - len(results),
        "lost_as_documented": sum(len(attempt["lost"]) for attempt in attempts),
        "late_for_want_of_a_core": sum(attempt["late_for_want_of_a_core"] for attempt in attempts),
        "memory_mb": memory,
        "failed": [each for result in results for each in result["failed"]],
    }


def main() -> None:
    """Run the simulation, write the figures, and fail if a volume is not accounted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=10.0, help="hours to simulate (default 10)")
    parser.add_argument("--times", type=float, default=8.0, help="speed; 8 is a TR of 167 ms (default 8)")
    parser.add_argument("--lanes", type=int, default=3, help="runtimes beside each other (default 3)")
    parser.add_argument(
        "--way", action="append", choices=list(WAYS), help="can be repeated (default: all of them)"
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file of the figures; written as the simulation goes on"
    )
    options = parser.parse_args()
    names = options.way or list(WAYS)
    work = Path(tempfile.mkdtemp(prefix="soak-"))  # stays if something fails
    prepare(work, options.times)
    n_runs = max(1, round(options.hours / RUN_HOURS / len(names)))
    results: dict[str, list[dict[str, Any]]] = {}
    figures: dict[str, Any] = {}
    with ProcessPoolExecutor(options.lanes, mp_context=get_context("spawn")) as lanes:
        waiting = {lanes.submit(one_way, name, n_runs, work): name for name in names}
        for done in tqdm(as_completed(waiting), total=len(names), unit="way"):
            results[waiting[done]] = done.result()
            each = {name: figures_of(results[name]) for name in names if name in results}
            everything = figures_of([result for name in each for result in results[name]])
            del everything["memory_mb"]
            figures = {
                "hours": everything["runs"] * RUN_HOURS,
                "times": options.times,
                "all": everything,
                "ways": each,
                "machine": machine(),
            }
            if options.out:
                options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures["all"], indent=2))
    if figures["all"]["failed"]:
        raise SystemExit(f"{len(figures['all']['failed'])} checks failed; see {work}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
