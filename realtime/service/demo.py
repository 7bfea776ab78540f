"""``realtime demo``: a runtime, and a simulated scanner that replays the shipped run to it."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from realtime.errors import ServeError
from realtime.events import STATE_WORDS, Event, Frame, Reported, Shown, Status
from realtime.network.channel import Heard, listening
from realtime.record.reader import read_recorded
from realtime.report import summary as report_summary
from realtime.report import write
from realtime.service.process import Role, cancel, stop_signals
from realtime.service.serve import environment, say_start
from realtime.service.supervisor import running

_SERIES = "nsddata_timeseries/ppdata/subj*/func1pt8mm/timeseries/timeseries_session*_run*.nii.gz"
_SERIES_NAME = re.compile(r"subj(\d+)/.*timeseries_session(\d+)_run(\d+)\.nii\.gz\Z")
_CHILD_PATIENCE_S = 5.0
_REPORT_PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What the simulated scanner replays."""

    nsd: Path
    """A folder in NSD's layout that holds one run."""
    speed: float


def demo(
    arguments: Mapping[Role, Sequence[str]],
    out: Path,
    replay: Replay,
    *,
    open_browser: bool,
    tell: Callable[[str], None],
) -> None:
    """Replay the run to its end, or until Ctrl-C; write the report and print it.

    :param arguments: of each process of the runtime
    :param out: where it records
    :raises RealtimeError: when it cannot start, or the scanner fails
    """
    command = scanner_command(replay)
    asyncio.run(_demo(arguments, out, command, open_browser, tell))


def scanner_command(replay: Replay) -> list[str]:
    """The command that replays the one run under ``replay.nsd``; the caller appends the address.

    :raises ServeError: when there is not exactly one
    """
    found = sorted(path.relative_to(replay.nsd).as_posix() for path in replay.nsd.glob(_SERIES))
    match = _SERIES_NAME.search(found[0]) if len(found) == 1 else None
    if match is None:
        raise ServeError(f"expected one run to replay, {replay.nsd / _SERIES}, found {len(found)}")
    subject, session, run = (str(int(number)) for number in match.groups())
    # -P: not a package of the same name in the current folder.
    command = [sys.executable, "-P", "-m", "sim", "replay", "--nsd", str(replay.nsd), "--subject", subject]
    return [*command, "--session", session, "--run", run, "--speed", str(replay.speed), "--connect"]


async def _demo(
    arguments: Mapping[Role, Sequence[str]],
    out: Path,
    command: list[str],
    open_browser: bool,
    tell: Callable[[str], None],
) -> None:
    async with (
        stop_signals() as stop,
        listening(out, "decoder") as heard,
        running(arguments, environment()) as runtime,
    ):
        stopped = asyncio.create_task(stop.wait())
        starting = asyncio.create_task(say_start(runtime, tell, open_browser=open_browser))
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            await cancel(starting)
            tell("stopped before the run began, so there is no report")
            return
        async with _scanner([*command, starting.result(), "--stop-with-stdin"]) as scanner:
            folder = await _until_reported(heard, stopped, scanner)
        if folder:
            with_network = not stop.is_set()
            await asyncio.to_thread(_report, folder, out, with_network=with_network, tell=tell)
        else:
            tell("stopped before the run began, so there is no report")
        scanner.check()
        if "page" in arguments and sys.stdin.isatty() and not stop.is_set():
            tell("the page stays until Ctrl-C")
            await stopped


async def _until_reported(
    heard: Heard, stopped: asyncio.Task[Literal[True]], scanner: _Scanner
) -> Path | None:
    """Serve until the run's report is written, the scanner has failed, or the user stops it.

    :returns: the run's folder, if it began
    """
    progress = _Progress()
    reported = asyncio.create_task(progress.follow(heard))
    ended = asyncio.create_task(scanner.process.wait())
    try:
        await asyncio.wait({reported, stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
        await scanner.end(interrupt=stopped.done())
        if progress.folder and not reported.done():
            await asyncio.wait({reported}, timeout=_REPORT_PATIENCE_S)
    finally:
        await cancel(reported, ended)
        progress.close()
    return progress.folder


class _Progress:
    """A progress bar, if there is a terminal, and the run that it is of."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        """Of the run, once it has begun."""
        self._latency = ""
        self._bar = tqdm(unit=" volumes", disable=None, dynamic_ncols=True)

    async def follow(self, heard: Heard) -> None:
        """Return once the report of the run is written."""
        while True:
            message = await heard.receive()
            if isinstance(message, Reported):
                return
            if isinstance(message, Event):
                self._show(message.message)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def _show(self, message: Status | Frame | Shown) -> None:
        if isinstance(message, Frame):
            self._latency = f", {message.latency_ms.total:.0f} ms"
        elif isinstance(message, Status):
            if message.run_folder:
                self.folder = Path(message.run_folder)
            self._bar.total = message.counts.planned or None
            self._bar.set_description_str(STATE_WORDS[message.state], refresh=False)
            self._bar.set_postfix_str(f"{message.counts.decoded} decoded{self._latency}", refresh=False)
            self._bar.update(message.counts.received - self._bar.n)


class _Scanner:
    """The simulated scanner, in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, said: Path) -> None:
        self.process = process
        self._said = said
        self._was_ended = False
        self._last_line = ""

    async def end(self, *, interrupt: bool) -> None:
        """Wait until the process has ended; with ``interrupt``, tell it to end its run now."""
        if interrupt and self.process.returncode is None:
            self._was_ended = True
            self.process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(self.process.wait(), _CHILD_PATIENCE_S)
        except TimeoutError:
            self._was_ended = True
            self.process.kill()
            await self.process.wait()
        said = self._said.read_text(errors="replace").strip().splitlines()
        self._last_line = (said or ["it printed no reason"])[-1]

    def check(self) -> None:
        """:raises ServeError: when the scanner failed by itself, with the last line that it printed."""
        if self.process.returncode and not self._was_ended:
            raise ServeError(f"the simulated scanner failed: {self._last_line}")


@asynccontextmanager
async def _scanner(command: list[str]) -> AsyncIterator[_Scanner]:
    """Run the scanner; the process has ended when the block ends, whatever happens.

    It has a session of its own, so that a terminal's Ctrl-C reaches this process first.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        with said.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,  # never written to; closed, it says that this process is gone
                stdout=asyncio.subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )
        try:
            yield _Scanner(process, said)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _report(folder: Path, out: Path, *, with_network: bool, tell: Callable[[str], None]) -> None:
    """Write the report into the run folder and, as the demo's result, into ``out``."""
    summary = write.write_report(folder)
    if with_network:
        write.add_network(summary, folder)
    recorded = read_recorded(folder)
    for target in (folder, out):
        write.save(target, summary, recorded)
    for line in report_summary.lines(summary):
        tell(line)
    tell(f"frames, tables  {folder}")
    tell(f"report          {(out / 'report.html').absolute()}")
