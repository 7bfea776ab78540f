"""What the three processes of a runtime have in common: how they start, what they may use, how they stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Literal

import msgspec

Role = Literal["record", "decode", "page"]
"""The processes, by the subcommands that run them."""
_NICE: dict[Role, int] = {"record": 0, "decode": 5, "page": 10}
"""Where cores are short, the recorder goes first."""
_OOM_SCORE: dict[Role, int] = {"record": 0, "decode": 300, "page": 600}
"""Where memory is short, the system ends the page first, and the recorder last."""
_PAGE_DATA_BYTES = 2 * 2**30
"""More memory than this the page does not get; it is started again."""
_DESCRIPTORS = 4096

_log = logging.getLogger(__name__)


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """What a process says once it serves, as one line of JSON if another process started it."""

    lines: list[str]
    """For the operator."""
    address: str = ""
    """Where it listens, so that it can be started again at the same place."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """What a process that another one started says last when it has failed, as one line of JSON."""

    error: str


def say_failed(error: Exception) -> None:
    """Tell the supervisor why this process ends."""
    sys.stdout.write(f"{msgspec.json.encode(Failed(error=str(error))).decode()}\n")
    sys.stdout.flush()


def say_ready(ready: Ready, *, is_supervised: bool) -> None:
    """Tell the supervisor, or else the operator, that the process serves."""
    lines = [msgspec.json.encode(ready).decode()] if is_supervised else ready.lines
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def set_budget(role: Role) -> None:
    """Give this process its place in the queue for cores and memory, and room for its connections."""
    with contextlib.suppress(OSError, AttributeError):  # no such thing on Windows
        os.nice(_NICE[role])
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE[role]))
    if sys.platform == "win32":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(_DESCRIPTORS, most)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    if role == "page":
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (_PAGE_DATA_BYTES, _PAGE_DATA_BYTES))


async def until_stopped(serving: Awaitable[None], *, is_supervised: bool) -> None:
    """Serve until SIGINT or SIGTERM; if another process started this one, also until that one is gone."""
    async with stop_signals() as stop:
        waiting = [asyncio.ensure_future(serving), asyncio.ensure_future(stop.wait())]
        if is_supervised:
            waiting.append(asyncio.ensure_future(_end_of_stdin()))
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(*waiting)
        for task in done:
            task.result()


@contextlib.asynccontextmanager
async def stop_signals() -> AsyncIterator[asyncio.Event]:
    """An event that is set by Ctrl-C or SIGTERM, in place of a KeyboardInterrupt."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stop.set)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def cancel(*tasks: asyncio.Future[None] | asyncio.Task[object]) -> None:
    """Cancel tasks and wait until they have ended; their exceptions are not raised here."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def every(period_s: float, act: Callable[[], None]) -> None:
    """Call a function in regular intervals until cancelled."""
    while True:
        act()
        await asyncio.sleep(period_s)


async def _end_of_stdin() -> None:
    """Return when the other end of standard input is closed."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    _log.info("the process that started this one is gone")
