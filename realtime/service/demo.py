"""``realtime demo``: a simulated scanner replays the shipped run to a runtime in this process."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from realtime.errors import ServeError
from realtime.events import Broadcast, Frame, Status
from realtime.record.reader import read_recorded
from realtime.report import summary as report_summary
from realtime.report import write
from realtime.service.serve import cancel, describe
from realtime.service.service import Options, Service, interrupts, open_page

_SERIES = "nsddata_timeseries/ppdata/subj*/func1pt8mm/timeseries/timeseries_session*_run*.nii.gz"
_SERIES_NAME = re.compile(r"subj(\d+)/.*timeseries_session(\d+)_run(\d+)\.nii\.gz\Z")
_CHILD_PATIENCE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What the simulated scanner replays."""

    nsd: Path
    """A folder in NSD's layout that holds one run."""
    speed: float


def demo(options: Options, replay: Replay, *, open_browser: bool, tell: Callable[[str], None]) -> None:
    """Replay the run to its end, or until Ctrl-C; write the report and print it.

    :raises RealtimeError: when it cannot start, or the scanner fails
    """
    command = scanner_command(replay)
    asyncio.run(_demo(Service(options), options, command, open_browser, tell))


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
    service: Service, options: Options, command: list[str], open_browser: bool, tell: Callable[[str], None]
) -> None:
    with interrupts() as stop:
        await service.start()
        try:
            if service.url:
                tell(f"open {service.url}")
            for line in describe(service, options):
                tell(line)
            if open_browser and service.url:
                await asyncio.to_thread(open_page, service.url)
            async with _scanner([*command, service.source_address, "--stop-with-stdin"]) as scanner:
                folder = await _follow(service, stop, scanner)
            if folder:
                with_network = not stop.is_set()
                await asyncio.to_thread(_report, folder, options.out, with_network=with_network, tell=tell)
            else:
                tell("stopped before the run began, so there is no report")
            scanner.check()
            if service.url and sys.stdin.isatty() and not stop.is_set():
                tell("the page stays until Ctrl-C")
                await stop.wait()
        finally:
            await service.stop(end_run=True)


async def _follow(service: Service, stop: asyncio.Event, scanner: _Scanner) -> Path | None:
    """Serve until the run is closed, the scanner has ended or the user stops it; returns the run's folder."""
    closed = asyncio.create_task(service.closed.get())
    serving = asyncio.create_task(service.pipeline.run())
    tasks: list[asyncio.Task[object]] = [
        serving,
        asyncio.create_task(stop.wait()),
        asyncio.create_task(scanner.process.wait()),
        asyncio.create_task(_show_progress(service.pipeline.broadcast)),
    ]
    try:
        done, _ = await asyncio.wait([closed, *tasks], return_when=asyncio.FIRST_COMPLETED)
        await scanner.end(interrupt=closed not in done)
    finally:
        await cancel(*tasks)
        left_open = service.pipeline.stop(end_run=True)
    if serving in done:
        serving.result()
    folder = closed.result() if closed.done() else left_open
    closed.cancel()
    return folder


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


async def _show_progress(broadcast: Broadcast) -> None:
    """A progress bar, if there is a terminal."""
    latency = ""
    with tqdm(unit=" volumes", disable=None, dynamic_ncols=True) as bar:
        async with broadcast.listen() as queue:
            while True:
                message = (await queue.get()).message
                if isinstance(message, Frame):
                    latency = f", {message.latency_ms.total:.0f} ms"
                elif isinstance(message, Status):
                    bar.total = message.counts.planned or None
                    bar.set_description_str(message.state, refresh=False)
                    bar.set_postfix_str(f"{message.counts.decoded} decoded{latency}", refresh=False)
                    bar.update(message.counts.received - bar.n)


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
