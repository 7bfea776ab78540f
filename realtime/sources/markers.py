"""Merges volumes from one source with markers from presentation software at another port.

Scanners that use Pyneal's or AFNI's protocol, or write files, do not know which pictures are shown.
Presentation software counts the scanner's trigger pulses, so it knows at which volume each picture appeared.
It sends :class:`realtime.wire.Marker` and waits for each answer, as ``docs/examples/presentation.py`` shows.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace

import msgspec

from realtime import wire
from realtime.sources import Peer, Received, Source

PATIENCE_TR = 5
"""A run is alive for this many TR after each volume. A marker waits this long for a run to begin."""
EARLY_TR = 2
"""How many TR before its computed onset a marker may arrive, because volumes can be delayed."""


class MarkedSource:
    """A :class:`realtime.sources.Source` that merges volumes and markers.

    A marker is assigned to the run that is alive, whatever run it names, because presentation software does
    not know the run ids used here. If no run is alive, the marker waits for the next volume, which may begin
    another run. A marker that arrived too early to belong to that run belongs to the previous run, which is
    over, and is refused.

    :param volumes: source of all messages except markers
    :param markers: source of markers; its other messages are refused
    :param tr_s: TR in seconds, until a run's start says another
    """

    def __init__(self, volumes: Source, markers: Source, tr_s: float) -> None:
        self._volumes = volumes
        self._markers = markers
        self._tr_s = tr_s
        self._coming: dict[Source, asyncio.Task[Received]] = {}
        self._run_id: str | None = None
        self._peer = Peer()
        """Who sends the open run."""
        self._first_s = self._began_s = self._heard_s = -math.inf
        """Open run: arrival of its first volume, its beginning computed from that, arrival of its newest."""
        self._before_s = -math.inf
        """Arrival of the last volume of the previous run."""

    async def start(self) -> str:
        """Start listening at both ports and return both addresses."""
        address = await self._volumes.start()
        try:
            return f"{address}, markers from {await self._markers.start()}"
        except BaseException:
            await self._volumes.stop()
            raise

    async def receive(self) -> Received:
        """Wait for the next message of either source; markers first, so that a window finds its marker."""
        while True:
            marker, volume = self._next(self._markers), self._next(self._volumes)
            if not marker.done():
                if volume.done():
                    return self._note(self._take(self._volumes))
                await asyncio.wait({marker, volume}, return_when=asyncio.FIRST_COMPLETED)
                continue
            came = marker.result()
            if refusal := self._refusal(came):
                await self._refuse(came, *refusal)
            elif self._run_id is not None and self._is_alive:
                return self._of_run(self._take(self._markers), self._run_id)
            elif volume.done():
                return self._note(self._take(self._volumes))
            elif (patience_s := came.received_s + PATIENCE_TR * self._tr_s - time.perf_counter()) > 0:
                await asyncio.wait({volume}, timeout=patience_s)
            else:
                reason = f"expected a running scan, got no volume within {PATIENCE_TR} TR; send it again"
                await self._refuse(came, "no-run", reason)

    async def stop(self) -> None:
        """Stop listening at both ports."""
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
        """Remember which run is open and when it began."""
        message = received.message
        if isinstance(message, wire.RunStart):
            self._tr_s = message.tr_s
        elif isinstance(message, wire.Volume):
            if message.run_id != self._run_id:
                self._before_s = self._heard_s
                self._first_s = received.received_s
                self._began_s = self._first_s - (message.index + 1) * self._tr_s
            self._run_id, self._heard_s = message.run_id, received.received_s
            self._peer = received.peer
        elif isinstance(message, wire.RunEnd):
            self._run_id = None
        return received

    @property
    def _is_alive(self) -> bool:
        return time.perf_counter() - self._heard_s <= PATIENCE_TR * self._tr_s

    def _refusal(self, came: Received) -> tuple[str, str] | None:
        """Return code and reason if a message from the marker port must be refused."""
        message = came.message
        if not isinstance(message, wire.Marker):
            return "kind", f"expected a marker at this port, got a {type(message).__name__}"
        earliest_s = self._began_s + (message.onset_volume - EARLY_TR) * self._tr_s
        of_before_s = min(earliest_s, self._first_s, self._before_s + PATIENCE_TR * self._tr_s)
        if self._run_id is not None and self._is_alive and came.received_s < of_before_s:
            return "over", (
                f"expected a marker of the open run, got one for volume {message.onset_volume} that came "
                "before the run began: it belongs to the previous run, which is over"
            )
        return None

    async def _refuse(self, received: Received, code: str, reason: str) -> None:
        self._take(self._markers)
        await received.reply(wire.Refused(run_id=received.message.run_id, code=code, message=reason))

    def _of_run(self, received: Received, run_id: str) -> Received:
        """Put a marker into the run, in the name of its owner: the port of markers has keys of its own."""
        message = msgspec.structs.replace(received.message, run_id=run_id)
        return replace(received, message=message, peer=self._peer)
