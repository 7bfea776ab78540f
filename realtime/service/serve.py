"""``realtime serve``: recorder, decoder and page, until they are stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from realtime.events import Event, Status
from realtime.network.channel import Heard, listening
from realtime.progress import Progress
from realtime.service.process import Role, cancel, stop_signals
from realtime.service.supervisor import Runtime, running
from realtime.viewer.open import open_page

READY = "ready for the scanner"
"""The last line of the start."""
_IN_ORDER: tuple[Role, ...] = ("page", "record", "decode")
"""As they become ready."""
TOKEN_VARIABLE = "REALTIME_PAGE_TOKEN"  # noqa: S105
"""The page's token for the process that serves it: so it stays the same when that is started again."""
_log = logging.getLogger(__name__)


def serve(
    arguments: Mapping[Role, Sequence[str]], out: Path, *, open_browser: bool, tell: Callable[[str], None]
) -> None:
    """Serve until Ctrl-C; a run that is open then stays open, and the next ``serve`` goes on with it.

    :param arguments: of each process
    :param out: where they record
    :param tell: takes lines for the operator
    :raises ServeError: when a process does not start
    """
    asyncio.run(_serve(arguments, out.absolute(), open_browser, tell))


async def _serve(
    arguments: Mapping[Role, Sequence[str]], out: Path, open_browser: bool, tell: Callable[[str], None]
) -> None:
    async with (
        stop_signals() as stop,
        listening(out, "decoder") as heard,
        running(arguments, environment()) as runtime,
    ):
        following = asyncio.create_task(say_progress(heard))
        telling = asyncio.create_task(say_start(runtime, tell, open_browser=open_browser))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({telling, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
            else:
                await cancel(telling)
            await stopped
        finally:
            await cancel(following)


async def say_progress(heard: Heard) -> None:
    """Log now and then how far the open run is."""
    progress, folder = Progress(0, ""), ""
    while True:
        message = await heard.receive()
        status = message.message if isinstance(message, Event) else None
        if not isinstance(status, Status) or status.state not in ("warming", "trusted"):
            continue
        counts = status.counts
        if status.run_folder != folder:
            progress, folder = Progress(counts.planned, "volumes"), status.run_folder or ""
        if line := progress.line(counts.received, time.monotonic()):
            _log.info("%s: %s, %d decoded", status.run_id, line, counts.decoded)


def environment() -> dict[str, str]:
    """The variables of this process, and a token for the page."""
    return {TOKEN_VARIABLE: secrets.token_urlsafe(32)} | os.environ


async def say_start(runtime: Runtime, tell: Callable[[str], None], *, open_browser: bool) -> str:
    """Tell the operator what serves, and where, once it does; returns the address for scanners.

    :raises ServeError: when a process does not start
    """
    address = ""
    for role in _IN_ORDER:
        ready = await runtime.ready(role)
        if ready is None:
            tell("no page (headless)")
            continue
        for line in ready.lines:
            tell(line)
        if role == "record":
            address = ready.address
        if role == "page" and open_browser:
            await asyncio.to_thread(open_page, ready.address)
    tell(READY)
    return address
