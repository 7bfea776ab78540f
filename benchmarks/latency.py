"""Measures a runtime at real size: latency without the decoder's time, memory, idle CPU, the demo's start.

    python benchmarks/full_size_export.py --recipe demo --voxels 15724 --forms compact --work W --keep
    python benchmarks/latency.py --bundle W/compact --out docs/results/latency.json
    python benchmarks/latency.py --bundle W/compact --against ../before --out both.json

A run of 225 volumes of 81 x 104 x 83 float32, one every 0.5 s, is sent by `python -m sim replay` to `realtime
serve`, which masks 15 724 voxels, writes the journal, detrends, and decodes with the bundle's quickest
sampler. The run's table has the time from a volume's last byte to its frame, of which brain, denoise and vae
are the decoder's. The largest figures that are accepted are among the results. With ``--against`` another
checkout, such as the version before a change, takes turns with this one on the same machine.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
from machine import machine
from runtime import HERE, PATIENCE_S, Runtime, find_url, replay, start

from nsd import TR_S, Layout, task_runs
from realtime.bundle.bundle import Bundle
from realtime.record.reader import read_recorded
from realtime.record.tables import Row

PERIOD_S = 0.5
IDLE_S, SETTLE_S = 10.0, 15.0
RUN_ID = "latency"
LIMITS = {
    "around_the_decoder_p99_ms": 25.0,
    "recorder_mb_besides_two_volumes": 100.0,
    "idle_cpu_percent": 1.0,
    "page_of_the_demo_s": 3.0,
}


def main() -> None:
    """Measure one or two checkouts in turn and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="bundle for volumes of this size")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout to compare with")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each checkout (default %(default)s)")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    checkouts = {"this": HERE}
    if options.against:
        checkouts["against"] = options.against.absolute()
    rounds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    bundle = Bundle.open(options.bundle.absolute())
    with tempfile.TemporaryDirectory() as folder:
        nsd = Path(folder) / "nsd"
        replayed = write_run(nsd, bundle)
        for number in range(options.rounds):
            for name, checkout in checkouts.items():
                work = Path(folder) / f"{name}-{number}"
                work.mkdir()
                found = measure(checkout, bundle, ["--nsd", str(nsd), *replayed], options.engine, work)
                rounds[name].append(found | {"page_s": page_of_the_demo(checkout, work)})
                shutil.rmtree(work)
    figures = {name: together(found) for name, found in rounds.items()}
    how = {"limits": LIMITS, "period_s": PERIOD_S, "rounds": options.rounds, "machine": machine()}
    text = json.dumps(figures | how, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def write_run(root: Path, bundle: Bundle) -> list[str]:
    """Write a data set of one run of noise on a baseline; return the options that replay it.

    A few distinct volumes repeat, which does not affect the measurement. The file is not compressed, so that
    the scanner spends little on reading it.
    """
    spec, layout = bundle.spec, Layout(root)
    run = task_runs(spec.subject, 1).start
    rng = np.random.default_rng(0)
    baseline = rng.uniform(600, 2000, spec.roi.shape).astype("<f4")
    volumes = [baseline + 20 * rng.standard_normal(spec.roi.shape, dtype=np.float32) for _ in range(8)]
    series, design = layout.timeseries(spec.subject, 1, run), layout.design(spec.subject, 1, run)
    for path in (series, design):
        path.parent.mkdir(parents=True)
    n_volumes = 226
    design.write_text("0\n" * (n_volumes - 1))
    shape_4d = (*spec.roi.shape, n_volumes)
    header = nibabel.Nifti1Image(np.broadcast_to(np.float32(0), shape_4d), np.array(spec.roi.affine)).header
    header.set_data_offset(header.single_vox_offset)
    with gzip.open(series, "wb", compresslevel=0) as file:
        file.write(header.binaryblock.ljust(header.single_vox_offset, b"\0"))
        for index in range(n_volumes):
            file.write(volumes[index * 5 % len(volumes)].tobytes(order="F"))
    return ["--subject", str(spec.subject), "--run", str(run), "--speed", str(TR_S / PERIOD_S)]


def measure(checkout: Path, bundle: Bundle, replayed: list[str], engine: str, work: Path) -> dict[str, Any]:
    """Send a run to a checkout's runtime; return its table, and memory and idle CPU of its processes."""
    sampler = min(bundle.spec.samplers, key=lambda each: sum(1 + (g != 1) for g in each.guidance))
    options = ["--bundle", str(bundle.folder), "--out", str(work / "runs"), "--port", "0"]
    options += ["--engine", engine, "--sampler", sampler.name]
    with Runtime(options, work=work, checkout=checkout) as runtime:
        time.sleep(SETTLE_S)
        idle = idle_cpu(runtime.processes)
        scanner = replay(runtime.address, [*replayed, "--run-id", RUN_ID], work=work, checkout=checkout)
        memory_mb = most_memory(runtime, scanner)
        if scanner.returncode:
            raise SystemExit(f"the scanner failed: {(work / 'sim.log').read_text()[-2000:]}")
        folder = work / "runs" / RUN_ID
        deadline_s = time.monotonic() + PATIENCE_S
        while not (folder / "report.html").exists() and time.monotonic() < deadline_s:
            time.sleep(0.1)
    recorded = read_recorded(folder)
    return {
        "engine": recorded.info.engine.description,
        "rows": recorded.rows,
        "idle_cpu_percent": idle,
        "memory_mb": memory_mb,
    }


def idle_cpu(processes: dict[str, psutil.Process]) -> dict[str, float]:
    """CPU time of each process in a while without a run, in percent of one core."""
    before = {role: sum(process.cpu_times()[:2]) for role, process in processes.items()}
    time.sleep(IDLE_S)
    used_s = {role: sum(process.cpu_times()[:2]) - before[role] for role, process in processes.items()}
    return {role: 100 * each / IDLE_S for role, each in used_s.items()}


def most_memory(runtime: Runtime, scanner: subprocess.Popen[bytes]) -> dict[str, float]:
    """Largest resident memory of each process until the scanner has ended, in MB."""
    most_mb: dict[str, float] = defaultdict(float)
    while scanner.poll() is None:
        for role, process in runtime.processes.items():
            most_mb[role] = max(most_mb[role], process.memory_info().rss / 1e6)
        time.sleep(0.25)
    return dict(most_mb)


def page_of_the_demo(checkout: Path, work: Path) -> float:
    """Seconds from `realtime demo` until its page answers."""
    log = work / "realtime.log"
    log.unlink(missing_ok=True)
    begun_s = time.monotonic()
    demo = start("realtime", ["demo", "--no-open", "--port", "0"], work=work, checkout=checkout)
    try:
        while time.monotonic() - begun_s < PATIENCE_S and demo.poll() is None:
            if (url := find_url(log.read_text())) and answers(url):
                return time.monotonic() - begun_s
            time.sleep(0.01)
        raise SystemExit(f"the demo's page did not answer: {log.read_text()[-4000:]}")
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(PATIENCE_S)


def answers(url: str) -> bool:
    """Whether a page is there; its token becomes a cookie on the way."""
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    try:
        with browser.open(url, timeout=10) as response:
            return bool(response.status == 200)
    except urllib.error.URLError:
        return False


def together(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a checkout over all its rounds."""
    rows: list[Row] = [row for each in rounds for row in each["rows"]]
    decoded = [row for row in rows if row.total_ms is not None]
    decode = np.array([(row.brain_ms or 0) + (row.denoise_ms or 0) + (row.vae_ms or 0) for row in decoded])
    around = np.array([row.total_ms or 0 for row in decoded]) - decode
    stages = {
        name: np.array([getattr(row, f"{name}_ms") or 0.0 for row in decoded])
        for name in ("journal", "preprocess", "wait")
    }
    return {
        "engine": rounds[0]["engine"],
        "frames": len(decoded),
        "skipped": sum(row.state == "skipped" for row in rows),
        "around_the_decoder_ms": quantiles(around),
        **{f"{name}_ms": quantiles(values) for name, values in stages.items()},
        "decode_ms": quantiles(decode),
        "most_memory_mb": worst(rounds, "memory_mb"),
        "idle_cpu_percent": worst(rounds, "idle_cpu_percent"),
        "page_of_the_demo_s": {
            "median": round(statistics.median(each["page_s"] for each in rounds), 2),
            "max": round(max(each["page_s"] for each in rounds), 2),
        },
    }


def worst(rounds: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Largest value of each process over all rounds."""
    return {role: round(max(each[name][role] for each in rounds), 2) for role in rounds[0][name]}


def quantiles(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """Return median, 95th and 99th percentile and maximum."""
    levels = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(float(np.quantile(values, q)), 2) for name, q in levels.items()}


if __name__ == "__main__":
    main()
