"""``realtime serve``: recorder, decoder and page, until they are stopped."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence

from realtime.service.process import Role, cancel, stop_signals
from realtime.service.supervisor import Runtime, running



def serve(
    arguments: Mapping[Role, Sequence[str]], *, open_browser: bool, tell: Callable[[str], None]
) -> None:
    """Serve until Ctrl-C; a run that is open then stays open, and the next ``serve`` goes on with it.

    :param arguments: of each process
    :param tell: takes lines for the operator
    :raises ServeError: when a process does not start
    """
    asyncio.run(_serve(arguments, open_browser, tell))


async def _serve(
    arguments: Mapping[Role, Sequence[str]], open_browser: bool, tell: Callable[[str], None]
) -> None:
    async with stop_signals() as stop, running(arguments, page_environment()) as runtime:
        telling = asyncio.create_task(say_start(runtime, tell, open_browser=open_browser))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({telling, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if telling.done():
            telling.result()
        else:
            await cancel(telling)
        await stopped
