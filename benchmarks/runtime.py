"""Starts the commands of a checkout as users do, and finds the processes of its runtime by their roles."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import psutil

HERE = Path(__file__).parent.parent
"""This checkout."""
SUBCOMMANDS = {"record": "recorder", "decode": "decoder", "page": "page"}
"""What `realtime serve` starts as processes of their own, and their roles."""
PATIENCE_S = 600.0


def start(
    module: str, arguments: Sequence[str], *, work: Path, checkout: Path = HERE
) -> subprocess.Popen[bytes]:
    """Start `python -m MODULE` of a checkout in a folder; what it prints goes to ``MODULE.log`` there.

    The user's configuration, such as keys, is in the same folder.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"}
    environment["XDG_CONFIG_HOME"] = str(work)
    command = [sys.executable, "-m", module, *arguments]
    with (work / f"{module}.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def replay(
    address: str, options: Sequence[str], *, work: Path, checkout: Path = HERE
) -> subprocess.Popen[bytes]:
    """Start a simulated scanner that sends a recorded run."""
    return start("sim", ["replay", "--connect", address, *options], work=work, checkout=checkout)


def find_address(said: str) -> str:
    """Where a runtime takes volumes, from what it printed; empty: it has not said so yet."""
    found = re.search(r"volumes from ([^\s,]+),", said)
    return found[1] if found else ""


def find_url(said: str) -> str:
    """The page's URL, from what a runtime printed; empty: it has not said so yet."""
    found = re.search(r"\b(https?://\S+)\s", said)
    return found[1] if found else ""


def is_reported(folder: Path) -> bool:
    """Whether a run is closed and its last file is there; a runtime that is stopped reports open runs too."""
    info, report = folder / "run.json", folder / "report.html"
    if not report.exists() or json.loads(info.read_text())["state"] != "closed":
        return False
    return report.stat().st_mtime_ns >= info.stat().st_mtime_ns


class Runtime:
    """`realtime serve` and the processes that it starts. A context manager, which stops it.

    :param options: those of `realtime serve`, without ``--source``
    :param source: where volumes come from; port 0 takes a free one
    :raises SystemExit: when it does not start
    """

    def __init__(
        self,
        options: Sequence[str],
        *,
        work: Path,
        checkout: Path = HERE,
        source: str = "tcp://127.0.0.1:0",
    ) -> None:
        self.work = work
        self.address = source
        self.url = ""
        self._options, self._checkout = options, checkout
        self._said = 0
        self.start()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it; after the first time at the same address."""
        log = self.work / "realtime.log"
        self._said = log.stat().st_size if log.exists() else 0
        arguments = ["serve", "--source", self.address, *self._options]
        self.serve = start("realtime", arguments, work=self.work, checkout=self._checkout)
        self.address = self._wait_for(find_address)
        if "--headless" not in self._options:
            self.url = self._wait_for(find_url)
        self.is_split = len(self.processes) > 1

    def _wait_for(self, find: Callable[[str], str]) -> str:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            if found := find(self.said()):
                return found
            self.check()
            time.sleep(0.01)
        raise SystemExit(f"the runtime did not start; it printed: {self.said()[-4000:]}")

    def check(self) -> None:
        """:raises SystemExit: when `serve` has ended by itself"""
        if self.serve.poll() is not None:
            raise SystemExit(
                f"the runtime ended with code {self.serve.returncode}; it printed: {self.said()[-4000:]}"
            )

    def said(self) -> str:
        """What the runtime printed since its start."""
        return (self.work / "realtime.log").read_bytes()[self._said :].decode(errors="replace")

    @property
    def processes(self) -> dict[str, psutil.Process]:
        """Those that run, by role; ``serve`` is the one that was started, and in one process the only one."""
        self.check()
        serve = psutil.Process(self.serve.pid)
        return {"serve": serve, **dict(_children(serve))}

    def kill(self, role: str) -> str:
        """``kill -9`` one process, or ``all``; returns the role that was killed.

        `serve` starts a process again that it started. `serve` itself is started again here, as an operator
        would do it. A runtime in one process has no other role: whichever is named, `serve` is killed.
        """
        if role in SUBCOMMANDS.values() and self.is_split:
            self._wait_for_process(role).kill()
            return role
        if role == "all":
            self.close()
        else:
            self.serve.kill()
            self.serve.wait()
        self.start()
        return "all" if role == "all" else "serve"

    def close(self) -> None:
        """Kill every process that still runs."""
        if self.serve.poll() is None:
            serve = psutil.Process(self.serve.pid)
            for process in (serve, *serve.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.serve.wait()

    def _wait_for_process(self, role: str) -> psutil.Process:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            if process := self.processes.get(role):
                return process
            self.check()
            time.sleep(0.01)
        raise SystemExit(f"expected that the {role} is started again; see {self.work / 'realtime.log'}")

    def stop(self) -> float:
        """Stop it as Ctrl-C does, and return the seconds that this took.

        :raises SystemExit: when it fails
        """
        begun_s = time.monotonic()
        if self.serve.poll() is None:
            self.serve.send_signal(signal.SIGINT)
        if code := self.serve.wait(PATIENCE_S):
            raise SystemExit(f"the runtime ended with code {code}: {self.said()[-4000:]}")
        return time.monotonic() - begun_s


def _children(serve: psutil.Process) -> Iterator[tuple[str, psutil.Process]]:
    for child in serve.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            for program, word in pairwise(child.cmdline()):
                if Path(program).name == "realtime" and word in SUBCOMMANDS:
                    yield SUBCOMMANDS[word], child
