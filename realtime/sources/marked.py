"""Volumes from one source and what was on screen from another: presentation software at a port of its own.

Scanners that speak Pyneal's or AFNI's protocol, or write files, know nothing of pictures. Presentation
software does: it counts the scanner's trigger pulses, so it can tell at which volume each picture appeared.
It sends :class:`realtime.wire.Marker` and waits for the answer to each, as ``docs/presentation.py`` shows.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import msgspec

from realtime import wire
from realtime.sources import Received, Source

PATIENCE_TR = 5
"""A marker that comes before its run's first volume waits this many TR for it."""


class Marked:
    """A :class:`realtime.sources.Source` of both.

    A marker is one of the run that is open, whatever run it names: presentation software cannot know what
    runs are called here.

    :param volumes: gives all but markers
    :param markers: gives markers; other messages are refused
    """

    def __init__(self, volumes: Source, markers: Source, tr_s: float) -> None:
        self._volumes = volumes
        self._markers = markers
        self._patience_s = PATIENCE_TR * tr_s
        self._coming: dict[Source, asyncio.Task[Received]] = {}
        self._run_id: str | None = None

    async def start(self) -> str:
        """Begin to listen at both; returns both addresses."""
        address = await self._volumes.start()
        try:
            return f"{address}, markers from {await self._markers.start()}"
        except BaseException:
            await self._volumes.stop()
            raise

    async def receive(self) -> Received:
        """The next message of either; of two that are there, the marker, before a window needs it."""
        while True:
            marker, volume = self._next(self._markers), self._next(self._volumes)
            patience_s = None
            if marker.done():
                if reason := _why_not(marker.result()):
                    await self._refuse(marker.result(), "kind", reason)
                    continue
                if self._run_id is not None:
                    return _of_run(self._take(self._markers), self._run_id)
                patience_s = marker.result().received_s + self._patience_s - time.perf_counter()
            if volume.done():
                return self._note(self._take(self._volumes))
            if patience_s is not None and patience_s <= 0:
                reason = f"expected a run that is open, none began within {PATIENCE_TR} TR; send it again"
                await self._refuse(marker.result(), "no-run", reason)
                continue
            waiting = {volume} if marker.done() else {marker, volume}
            await asyncio.wait(waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)

    async def stop(self) -> None:
        """Stop listening at both."""
        coming, self._coming = list(self._coming.values()), {}
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
        try:
            await self._markers.stop()
        finally:
            await self._volumes.stop()

    def _next(self, source: Source) -> asyncio.Task[Received]:
        if source not in self._coming:
            self._coming[source] = asyncio.ensure_future(source.receive())
        return self._coming[source]

    def _take(self, source: Source) -> Received:
        return self._coming.pop(source).result()

    def _note(self, received: Received) -> Received:
        """Keep in mind which run is open."""
        if isinstance(received.message, wire.Volume):
            self._run_id = received.message.run_id
        elif isinstance(received.message, wire.RunEnd):
            self._run_id = None
        return received

    async def _refuse(self, received: Received, code: str, reason: str) -> None:
        self._take(self._markers)
        await received.reply(wire.Refused(run_id=received.message.run_id, code=code, message=reason))


def _why_not(received: Received) -> str:
    """Why a message is not taken where markers are; empty for a marker."""
    if isinstance(received.message, wire.Marker):
        return ""
    return f"expected a marker at this port, got a {type(received.message).__name__}"


def _of_run(received: Received, run_id: str) -> Received:
    return replace(received, message=msgspec.structs.replace(received.message, run_id=run_id))
