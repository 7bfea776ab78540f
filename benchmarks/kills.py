"""Kills the runtime's processes and the scanner (``kill -9``) at random moments of a run.

    python benchmarks/kills.py --out kills.json
    python benchmarks/kills.py --kill decoder=5 --kill all=2
    python benchmarks/kills.py --moving --speed 4 --kill decoder=4 --kill recorder=3 --kill all=3

Five kills per run, in random order: of the ``recorder``, the ``decoder`` or the ``page``, which `realtime
serve` starts again; of ``serve`` itself, of ``all`` of these at once, and of the ``scanner``, which are
started again here. Afterwards the run must be a single closed take. Its journal must contain every volume
byte for byte as it was sent, every volume must have one state and none be missing, and a replay must
reproduce its frames bit for bit.

With ``--moving``, the runs are the raw side of the same recording: a head that lies elsewhere and moves, on
the scanner's grid, registered to the decoder's reference. Their replays must find the same confounds, too.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from machine import machine
from runtime import PATIENCE_S, Runtime, is_reported, replay, start

from export.bundle.reference import add_reference
from nsd import Layout
from realtime import wire
from realtime.bundle.locate import demo_data
from realtime.record.journal import read_journal
from realtime.record.reader import read_recorded
from sim.recording import RawRecording, Recording

RUN_ID = "run"
LAST_SHARE = 0.9
"""No kill after this share of a run: a scanner that restarts after the run is closed begins another run."""
PER_RUN = 5
"""Number of kills per run."""
KILLS = {"recorder": 50, "decoder": 50, "page": 50, "scanner": 50, "serve": 20, "all": 20}


class Trial:
    """A runtime, and a scanner once it is started, as processes with their own folder.

    :param serve: further options of `realtime serve`
    :param scan: further options of `python -m sim replay`
    """

    def __init__(
        self,
        bundle: Path,
        nsd: Path,
        run: int,
        work: Path,
        speed: float,
        *,
        serve: Sequence[str] = (),
        scan: Sequence[str] = (),
    ) -> None:
        work.mkdir(parents=True, exist_ok=True)
        kind = RawRecording if "--raw" in scan else Recording
        self.recorded = kind(Layout(nsd), subject=1, session=1, run=run)
        self.work, self.out = work, work / "runs"
        self._replay = ["--nsd", str(nsd), "--run", str(run), "--run-id", RUN_ID, "--speed", str(speed)]
        self._replay += scan
        options = ["--bundle", str(bundle), "--out", str(self.out), "--port", "0", *serve]
        self.runtime = Runtime(options, work=work)
        self._scanner: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.out / RUN_ID

    @property
    def journal(self) -> Path:
        """Of the run."""
        return self.folder / "volumes.journal"

    def wait_for_volume(self, moment: float) -> None:
        """Wait until the journal holds as many volumes, as far as its size tells."""
        journal = self.journal
        size = moment * len(self.recorded.volume(0))
        self._wait_until(
            lambda: journal.exists() and journal.stat().st_size >= size, f"volume {moment:.0f} in {journal}"
        )

    def kill(self, role: str) -> str:
        """Kill a process; it is started again. Return which one was killed."""
        if role != "scanner":
            return self.runtime.kill(role)
        self._kill_scanner()
        self.start_scanner()
        return role

    def finish(self) -> None:
        """Wait until the scanner has ended the run and the runtime has reported it; stop the runtime."""
        scanner = self._scanner
        assert scanner
        self._wait_until(lambda: scanner.poll() is not None, "the scanner's end")
        if scanner.returncode:
            said = (self.work / "sim.log").read_text()
            raise SystemExit(f"the scanner failed; it printed: {said[-4000:]}")
        self._wait_until(lambda: is_reported(self.folder), f"the report in {self.folder}")
        self.runtime.stop()

    def close(self) -> None:
        """Kill the processes that still run."""
        self._kill_scanner()
        self.runtime.close()

    def start_scanner(self) -> None:
        """Begin to send the run, or go on with it."""
        self._scanner = replay(self.runtime.address, self._replay, work=self.work)

    def _wait_until(self, condition: Callable[[], bool], expected: str) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            self.runtime.check()
            if time.monotonic() > deadline_s:
                raise SystemExit(f"expected {expected} within {PATIENCE_S:.0f} s; see {self.work}")
            time.sleep(0.002)

    def _kill_scanner(self) -> None:
        if self._scanner:
            self._scanner.kill()
            self._scanner.wait()


def killed_run(
    bundle: Path,
    nsd: Path,
    run: int,
    work: Path,
    *,
    victims: Sequence[str],
    rng: random.Random,
    speed: float,
    scan: Sequence[str] = (),
) -> tuple[int, Counter[str]]:
    """Send a run, kill each victim in turn, check and replay it; return its number of frames, and deaths."""
    deaths: Counter[str] = Counter()
    trial = Trial(bundle, nsd, run, work, speed, scan=scan)
    trial.start_scanner()
    try:
        last = LAST_SHARE * trial.recorded.start.n_volumes
        moments = sorted(rng.uniform(0, last) for _ in victims)
        for n_held, victim in zip(moments, victims, strict=True):
            trial.wait_for_volume(n_held)
            time.sleep(rng.uniform(0, 0.05))
            deaths[trial.kill(victim)] += 1
        trial.finish()
    finally:
        trial.close()
    check(trial)
    return replayed(trial, bundle), deaths


def replayed(trial: Trial, bundle: Path) -> int:
    """Replay a run and return its number of frames.

    :raises SystemExit: when frames, states of volumes or confounds differ from the recorded run
    """
    again = trial.work / "again"
    arguments = ["replay", str(trial.folder), "--bundle", str(bundle), "--out", str(again)]
    if start("realtime", arguments, work=trial.work).wait(PATIENCE_S):
        raise SystemExit(f"the replay differs from the run; see {trial.work / 'realtime.log'}")
    recorded, replayed = (read_recorded(folder).quality for folder in (trial.folder, again / RUN_ID))
    differing = [
        name for name in recorded if not np.array_equal(recorded[name], replayed[name], equal_nan=True)
    ]
    if differing or recorded.keys() != replayed.keys():
        raise SystemExit(f"the replay's confounds differ: {', '.join(differing)}; see {trial.work}")
    frames = json.loads((again / RUN_ID / "replay.json").read_text())["frames"]
    return len(frames)


def check(trial: Trial) -> None:
    """Check that nothing was lost.

    :raises SystemExit: when a check fails; the message lists the failed checks
    """
    folder = trial.folder
    recorded = read_recorded(folder)
    n_volumes = trial.recorded.start.n_volumes
    volumes: dict[int, bytes] = {}
    for entry in read_journal(trial.journal):
        message = wire.decode_to_runtime(entry.header)
        if isinstance(message, wire.Volume):
            volumes[message.index] = entry.payload
    sent = {index: trial.recorded.volume(index) for index in range(n_volumes)}
    checks = {
        "the run is closed": recorded.info.state == "closed",
        "every volume is in the journal as it was recorded": volumes == sent,
        "every volume has one state": sorted(row.volume for row in recorded.rows) == list(range(n_volumes)),
        "none is missing": all(row.state != "missing" for row in recorded.rows),
        "every frame is there": all((folder / row.frame).exists() for row in recorded.rows if row.frame),
        "the run is one take": [path.parent.name for path in trial.out.glob("*/run.json")] == [RUN_ID],
    }
    if failed := [name for name, holds in checks.items() if not holds]:
        raise SystemExit(f"{folder}: failed checks: {'; '.join(failed)}")


def main() -> None:
    """Run the kills and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kill",
        action="append",
        type=_victims,
        metavar="ROLE=N",
        help=f"how often to kill which; can be repeated (default {KILLS})",
    )
    parser.add_argument("--moving", action="store_true", help="a head that moves, registered")
    parser.add_argument("--speed", type=float, default=20.0, help="1 is the scan's pace (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and their order (default 0)")
    parser.add_argument("--out", type=Path, help="JSON file of the figures, of both modes")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    bundle, nsd = demo_data("bundle"), demo_data("nsd")
    scan = ["--raw"] if options.moving else []
    if options.moving:
        folder = Path(tempfile.mkdtemp()) / "bundle"
        bundle = add_reference(bundle, Layout(nsd).mean(1), folder).folder
    victims = [role for role, number in options.kill or KILLS.items() for _ in range(number)]
    rng.shuffle(victims)
    deaths: Counter[str] = Counter()
    n_frames = 0
    runs = [victims[first : first + PER_RUN] for first in range(0, len(victims), PER_RUN)]
    for run_victims in runs:
        work = Path(tempfile.mkdtemp())  # stays if something fails
        frames, died = killed_run(
            bundle,
            nsd,
            10,
            work,
            victims=run_victims,
            rng=rng,
            speed=options.speed,
            scan=scan,
        )
        shutil.rmtree(work)
        n_frames, deaths = n_frames + frames, deaths + died
        print(f"{dict(deaths)}: nothing lost, {n_frames} frames replayed bit for bit", flush=True)
    if options.out:
        figures = json.loads(options.out.read_text()) if options.out.exists() else {}
        found = {"kills": dict(deaths), "runs": len(runs), "frames_replayed": n_frames, "machine": machine()}
        figures["moving" if options.moving else "still"] = found
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    if options.moving:
        shutil.rmtree(bundle.parent)


def _victims(text: str) -> tuple[str, int]:
    role, _, number = text.partition("=")
    if role not in KILLS or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"expected ROLE=N with one of {', '.join(KILLS)}, got {text!r}")
    return role, int(number)


if __name__ == "__main__":
    main()
