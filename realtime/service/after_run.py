"""What is done with a run once it is over: its report is written, and, if asked for, it is sealed.

Each is a process of its own, behind all others: they read all of a run while the next may be under way. A
decoder that stops waits for them, but not for long. A run whose seal was cut short then, or by its death, is
sealed by the next decoder.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from realtime.errors import RecordError
from realtime.events import Reported
from realtime.record.run_json import read_run_file, sealed_path
from realtime.record.storage import exists

PATIENCE_S = 60.0
"""How long a stopped decoder waits for what is under way."""

_log = logging.getLogger(__name__)


class AfterRun:
    """Reports and seals runs.

    :param seal_to: public keys of age; none: runs stay in plain form
    :param reported: takes word of each report
    :param told: takes word of each run that was sealed, and None where one could not be (see :attr:`alarm`)
    """

    def __init__(
        self, seal_to: Sequence[str], reported: Callable[[Reported], None], told: Callable[[str | None], None]
    ) -> None:
        self._seal_to = [part for key in seal_to for part in ("--to", key)]
        self._reported = reported
        self._told = told
        self._tasks: set[asyncio.Task[None]] = set()
        self._not_sealed: dict[Path, str] = {}
        """Folders that should have been sealed, with the reason why they are not."""

    def take(self, folder: Path, *, is_closed: bool) -> None:
        """Take a run that is over, or one that is left open because the decoder stops."""
        self._begin(self._report_and_seal(folder, is_closed=is_closed))

    def take_left_over(self, out: Path) -> None:
        """Seal the runs whose sealing was interrupted, and name those that nobody began to seal."""
        if self._seal_to:
            self._begin(self._seal_left_over(out))

    async def stop(self) -> None:
        """Wait for what is under way, for a while."""
        if not self._tasks:
            return
        _, pending = await asyncio.wait(self._tasks, timeout=PATIENCE_S)
        if pending:
            _log.warning(
                "the report or the seal of a run is cut short; `realtime report` and `realtime seal` do it"
            )

    @property
    def alarm(self) -> str:
        """Which run is in plain form though it should be sealed; empty once nothing of its folder is left."""
        for folder, reason in list(self._not_sealed.items()):
            if _is_gone(folder):
                del self._not_sealed[folder]
            else:
                return f"{folder.name} is not sealed: {reason}; mend that, and run `{self._command(folder)}`"
        return ""

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _report_and_seal(self, folder: Path, *, is_closed: bool) -> None:
        is_to_seal = is_closed and bool(self._seal_to)
        if is_to_seal:
            self._note(folder)
        error = await _run("report", str(folder))
        self._reported(Reported(run_folder=str(folder), error=error))
        if is_to_seal:
            await self._seal(folder)

    def _note(self, folder: Path) -> None:
        """Let the next decoder know, should this one die first."""
        from realtime.record.seal import note_to_seal

        try:
            note_to_seal(folder)
        except RecordError as error:  # the seal itself may have more luck
            _log.warning("%s", error)

    async def _seal_left_over(self, out: Path) -> None:
        from realtime.record.seal import interrupted

        begun = await asyncio.to_thread(interrupted, out)
        plain = await asyncio.to_thread(_closed, out)
        if others := [folder for folder in plain if folder not in begun]:
            names = ", ".join(folder.name for folder in others[:10]) + (", ..." if len(others) > 10 else "")
            _log.warning(
                "closed runs in %s that are not sealed, and stay so: %s; `%s` seals one",
                out,
                names,
                self._command(others[0]),
            )
        for folder in begun:
            await self._seal(folder)

    async def _seal(self, folder: Path) -> None:
        if error := await _run("seal", str(folder), *self._seal_to):
            _log.error("%s is not sealed: %s", folder, error)
            self._not_sealed[folder] = error
            self._told(None)
        else:
            sealed = sealed_path(folder)
            self._told(f"{folder.name} is sealed; `realtime unseal {sealed} --identity FILE` opens it")

    def _command(self, folder: Path) -> str:
        return shlex.join(["realtime", "seal", str(folder), *self._seal_to])


async def _run(*arguments: str) -> str:
    """Run a subcommand to its end; returns its last words if it failed."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "realtime",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_behind_all if os.name == "posix" else None,
        )
    except OSError as error:  # no memory, or no room for another process
        return f"cannot start a process for it: {error.strerror or error}"
    said = (await process.communicate())[0].decode(errors="replace").strip()
    for line in said.splitlines():
        _log.info("%s", line)
    if process.returncode == 0:
        return ""
    last = said.splitlines()[-1:] or [f"realtime {arguments[0]} ended with {process.returncode}"]
    return last[0].removeprefix("realtime: ")


def _behind_all() -> None:
    os.nice(10)


def _is_gone(folder: Path) -> bool:
    from realtime.record.seal import to_remove

    try:
        return not (exists(folder) or exists(to_remove(folder)))
    except RecordError:
        return False


def _closed(out: Path) -> list[Path]:
    """The closed runs under a folder that are in plain form, by name."""
    found = []
    for file in sorted(out.glob("[!.]*/run.json")):
        try:
            if read_run_file(file.parent).state == "closed":
                found.append(file.parent)
        except RecordError as error:
            _log.info("%s", error)
    return found
