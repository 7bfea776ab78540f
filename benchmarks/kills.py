"""Kills runtime and scanner (``kill -9``) at random moments of a run and restarts them.

    python benchmarks/kills.py --moments 50 --out kills.json

Each of the two is killed at ``--moments`` moments, five per run, in random order. Afterwards the run must be
a single closed take. Its journal must contain every volume byte for byte as it was sent, every volume must
have one state and none be missing, and a replay must reproduce its frames bit for bit.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from machine import machine

from nsd import Layout, Run
from realtime import wire
from realtime.bundle.locate import demo_data
from realtime.record.journal import read_journal
from realtime.record.reader import read_recorded

RUN_ID = "killed"
LAST_SHARE = 0.9
"""No kill after this share of a run: a scanner that restarts after the run is closed begins another run."""
PATIENCE_S = 600.0
PER_RUN = 5
"""Number of kills per run."""


class Trial:
    """A runtime and a scanner, as processes with their own folder."""

    def __init__(self, bundle: Path, nsd: Path, run: int, out: Path, speed: float) -> None:
        self.recorded = Run(Layout(nsd), 1, 1, run)
        self.out = out
        self._serve = ["serve", "--headless", "--bundle", str(bundle), "--out", str(out)]
        self._replay = [
            "replay",
            "--nsd",
            str(nsd),
            "--run",
            str(run),
            "--run-id",
            RUN_ID,
            "--speed",
            str(speed),
        ]
        self._address = "tcp://127.0.0.1:0"
        self._log = (out.parent / f"{out.name}.log").open("ab")
        self.runtime = self._start_runtime()
        self.scanner = self._start_scanner()

    @property
    def n_held(self) -> int:
        """Approximate number of volumes in the journal, from its size."""
        journal = self.out / RUN_ID / "volumes.journal"
        return journal.stat().st_size // self.recorded.volume(0).nbytes if journal.exists() else 0

    def kill_runtime(self) -> None:
        """Kill the runtime and start another at the same port."""
        _kill(self.runtime)
        self.runtime = self._start_runtime()

    def kill_scanner(self) -> None:
        """Kill the scanner and start another."""
        _kill(self.scanner)
        self.scanner = self._start_scanner()

    def finish(self) -> None:
        """Wait until the scanner has ended the run, then stop the runtime."""
        if self.scanner.wait(PATIENCE_S):
            raise SystemExit(f"the scanner failed; see {self._log.name}")
        self.runtime.terminate()
        self.runtime.wait(PATIENCE_S)

    def close(self) -> None:
        """Kill the processes that still run."""
        for process in (self.scanner, self.runtime):
            _kill(process)
        self._log.close()

    def _start_runtime(self) -> subprocess.Popen[str]:
        process = self._start("realtime", [*self._serve, "--source", self._address], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"volumes from (tcp://\S+),", line):
                self._address = found.group(1)
                return process
        raise SystemExit(f"the runtime did not start: see {self._log.name}")

    def _start_scanner(self) -> subprocess.Popen[str]:
        return self._start("sim", [*self._replay, "--connect", self._address], stdout=subprocess.DEVNULL)

    def _start(self, module: str, arguments: list[str], stdout: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(command, stdout=stdout, stderr=self._log, text=True)


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(PATIENCE_S)
    if process.stdout is not None:
        process.stdout.close()


def killed_run(
    bundle: Path, nsd: Path, run: int, out: Path, *, victims: Sequence[str], rng: random.Random, speed: float
) -> int:
    """Send a run, kill each victim in turn, check and replay the run; return its number of frames."""
    trial = Trial(bundle, nsd, run, out, speed)
    try:
        last = LAST_SHARE * trial.recorded.n_volumes
        moments = sorted(rng.uniform(0, last) for _ in victims)
        for n_held, victim in zip(moments, victims, strict=True):
            while trial.n_held < n_held:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))
            if victim == "runtime":
                trial.kill_runtime()
            else:
                trial.kill_scanner()
        trial.finish()
    finally:
        trial.close()
    check(trial)
    return replayed(trial, bundle)


def replayed(trial: Trial, bundle: Path) -> int:
    """Replay a run and return its number of frames.

    :raises SystemExit: when frames or states of volumes differ from the recorded run
    """
    out = trial.out.with_name(f"{trial.out.name}-again")
    command = [sys.executable, "-m", "realtime", "replay", str(trial.out / RUN_ID)]
    done = subprocess.run(
        [*command, "--bundle", str(bundle), "--out", str(out)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"the replay differs from the run: {done.stdout[-2000:]}{done.stderr}")
    frames = json.loads((out / RUN_ID / "replay.json").read_text())["frames"]
    return len(frames)


def check(trial: Trial) -> None:
    """Check that nothing was lost.

    :raises SystemExit: when a check fails; the message lists the failed checks
    """
    folder = trial.out / RUN_ID
    recorded = read_recorded(folder)
    n_volumes = trial.recorded.n_volumes
    volumes: dict[int, bytes] = {}
    for entry in read_journal(folder / "volumes.journal"):
        message = wire.decode_to_runtime(entry.header)
        if isinstance(message, wire.Volume):
            volumes[message.index] = entry.payload
    sent = {index: trial.recorded.volume(index).tobytes() for index in range(n_volumes)}
    checks = {
        "the run is closed": recorded.info.state == "closed",
        "every volume is in the journal as it was recorded": volumes == sent,
        "every volume has one state": sorted(row.volume for row in recorded.rows) == list(range(n_volumes)),
        "none is missing": all(row.state != "missing" for row in recorded.rows),
        "every frame is there": all((folder / row.frame).exists() for row in recorded.rows if row.frame),
        "the run is one take": [path.name for path in trial.out.iterdir()] == [RUN_ID],
    }
    if failed := [name for name, holds in checks.items() if not holds]:
        raise SystemExit(f"{folder}: failed checks: {'; '.join(failed)}")


def main() -> None:
    """Run the kills and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=50, help="kills of each process (default 50)")
    parser.add_argument("--speed", type=float, default=20.0, help="1 is the scan's pace (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and their order (default 0)")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    victims = ["runtime", "scanner"] * options.moments
    rng.shuffle(victims)
    deaths: Counter[str] = Counter()
    n_frames = 0
    runs = [victims[first : first + PER_RUN] for first in range(0, len(victims), PER_RUN)]
    for run_victims in runs:
        with tempfile.TemporaryDirectory() as folder:
            n_frames += killed_run(
                demo_data("bundle"),
                demo_data("nsd"),
                10,
                Path(folder) / "runs",
                victims=run_victims,
                rng=rng,
                speed=options.speed,
            )
        deaths.update(run_victims)
        print(f"{dict(deaths)}: nothing lost, {n_frames} frames replayed bit for bit", flush=True)
    if options.out:
        figures = {"kills": dict(deaths), "runs": len(runs), "frames_replayed": n_frames}
        options.out.write_text(json.dumps(figures | {"machine": machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
