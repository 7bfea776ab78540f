"""Starts the processes of a runtime and watches them: one that dies is started again."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec

from realtime.errors import ServeError
from realtime.service.process import Failed, Ready, Role

TITLES: Mapping[Role, str] = {"record": "recorder", "decode": "decoder", "page": "page"}
_MEANS: Mapping[Role, str] = {
    "record": "no volume is taken until it is back; the scanner keeps what is not acknowledged",
    "decode": "volumes are recorded meanwhile",
    "page": "recording and decoding go on",
}
_AGAIN_S, _AGAIN_AT_MOST_S = 0.1, 5.0
"""How soon a process is started again, twice as late each time that it dies early."""
_SOUND_S = 2.0
"""One that lived this long, its start included, did not die of it."""
_STOP_S = 2.0
"""A process that has not ended this long after SIGTERM is killed; the decoder finishes a decode first."""
_DECODER_STOP_S = 70.0
_LAST_WORDS_S = 1.0
"""How long to wait for what a process said before it ended; one that it started may keep its output open."""

_log = logging.getLogger(__name__)


class Child:
    """One process of the runtime.

    :param arguments: of ``realtime``, the subcommand first
    :param again: what to change in the arguments when it is started again, by what it said
    """

    def __init__(
        self,
        role: Role,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        again: Callable[[Sequence[str], Ready], Sequence[str]],
    ) -> None:
        self.role = role
        self._arguments = list(arguments)
        self._environment = environment
        self._again = again
        self._process: asyncio.subprocess.Process | None = None
        self._reason = ""
        """Why it ended, in its own words."""
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        """What it said when it first served. :raises ServeError: if it ended before"""

    async def run(self) -> None:
        """Keep it running until cancelled."""
        patience_s = _AGAIN_S
        while True:
            began_s = time.monotonic()
            try:
                has_served = await self._serve_once()
            except OSError as error:  # no memory, or no room for another process
                _log.error("cannot start the %s: %s", TITLES[self.role], error.strerror or error)
                has_served = False
                if not self.ready.done():
                    self.ready.set_exception(ServeError(f"cannot start the {TITLES[self.role]}: {error}"))
            if self.ready.done() and self.ready.exception():
                return
            is_sound = has_served and time.monotonic() - began_s > _SOUND_S
            patience_s = _AGAIN_S if is_sound else min(2 * patience_s, _AGAIN_AT_MOST_S)
            await asyncio.sleep(patience_s)

    async def _serve_once(self) -> bool:
        """Start it and wait until it has ended; whether it served."""
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # not a package of the same name in the current folder
            "-m",
            "realtime",
            *self._arguments,
            "--supervised",
            stdin=asyncio.subprocess.PIPE,  # never written to; closed, it says that this process is gone
            stdout=asyncio.subprocess.PIPE,
            env=dict(self._environment),
            start_new_session=True,  # so that a terminal's Ctrl-C reaches this process first
        )
        assert process.stdout is not None
        listening = asyncio.create_task(self._listen(process.stdout))
        try:
            status = await process.wait()
            await asyncio.wait({listening}, timeout=_LAST_WORDS_S)
        finally:
            listening.cancel()
        has_served = listening.done() and not listening.cancelled() and listening.result()
        how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        if self.ready.done() or status < 0:  # one that was killed gets another chance
            how = f"{how}: {self._reason}" if self._reason else how
            _log.error(
                "the %s has died (%s) and is started again: %s", TITLES[self.role], how, _MEANS[self.role]
            )
        else:
            unknown = f"the {TITLES[self.role]} did not start ({how}); what it printed is above"
            self.ready.set_exception(ServeError(self._reason or unknown))
        return has_served

    async def _listen(self, stream: asyncio.StreamReader) -> bool:
        """Read all that it prints, so that it never waits for a reader; whether it said that it serves."""
        has_served, self._reason = False, ""
        async for line in _lines(stream):
            said = _understood(line)
            if isinstance(said, Failed):
                self._reason = said.error
            elif isinstance(said, Ready):
                has_served = True
                if self.ready.done():
                    _log.warning("the %s is back", TITLES[self.role])
                else:
                    self._arguments = list(self._again(self._arguments, said))
                    self.ready.set_result(said)
        return has_served

    async def stop(self) -> None:
        """Once :meth:`run` is cancelled: let it end; kill it if it does not."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        patience_s = _DECODER_STOP_S if self.role == "decode" else _STOP_S
        try:
            await asyncio.wait_for(process.wait(), patience_s)
        except TimeoutError:
            _log.warning("the %s did not end in %.0f s and is killed", TITLES[self.role], patience_s)
            process.kill()
            await process.wait()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a stream up to its end, but for those that are too long."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line


class Runtime:
    """The processes of a runtime, all of them serving."""

    def __init__(self, children: Sequence[Child], tasks: Sequence[asyncio.Task[None]]) -> None:
        self._children = {child.role: child for child in children}
        self.tasks = tasks

    async def ready(self, role: Role) -> Ready | None:
        """What a process said when it first served; None if the runtime has none of this role.

        :raises ServeError: when it ended before
        """
        child = self._children.get(role)
        return await asyncio.shield(child.ready) if child else None


@asynccontextmanager
async def running(
    arguments: Mapping[Role, Sequence[str]], environment: Mapping[str, str]
) -> AsyncIterator[Runtime]:
    """Run the processes with these arguments; all have ended when the block ends, the recorder first."""
    children = [
        Child(role, (role, *options), environment, _at_same_place) for role, options in arguments.items()
    ]
    tasks = [asyncio.create_task(child.run()) for child in children]
    try:
        yield Runtime(children, tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for child in children:  # the recorder first: what comes now is not acknowledged
            await child.stop()


def _understood(line: bytes) -> Ready | Failed | None:
    try:
        return msgspec.json.decode(line, type=Ready | Failed)
    except (msgspec.DecodeError, UnicodeDecodeError):  # a library's words
        return None


def _at_same_place(arguments: Sequence[str], ready: Ready) -> Sequence[str]:
    """Arguments that take the port again which the process had taken."""
    changed = list(arguments)
    source, _, markers = ready.address.partition(", markers from ")
    for option, address in (("--source", source), ("--markers", markers), ("--publish", ready.address)):
        if option in changed and changed[at := changed.index(option) + 1].endswith(":0"):
            changed[at] = address
    if "--port" in changed:
        port = ready.address.rpartition(":")[2].partition("/")[0]
        changed[changed.index("--port") + 1] = port
    return changed
