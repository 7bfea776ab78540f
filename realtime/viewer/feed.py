"""The messages that one page has not had yet: the same for the data channel and for the WebSocket.

The broadcast's queue only says that there is news; the messages are read from the broadcast's memory. So a
page that was slow, or connected late, misses no frame of the open run, and no backlog builds up for it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping

import msgspec

from realtime.events import Broadcast, Event, Frame, Shown, Status

BEAT_S = 1.0
"""After this long without news, a page is sent a :class:`Beat`."""
BATCH = 32
"""Messages in one transmission, which must stay below the 64 KiB that every browser's data channel takes."""


class RunKey(msgspec.Struct, frozen=True, tag="run", tag_field="kind"):
    """The messages after this one belong to this run; the page requests pictures with its key."""

    key: str


class Beat(msgspec.Struct, frozen=True, tag="beat", tag_field="kind"):
    """The server is alive and has nothing new."""


Key = int | tuple[int, str]
"""Onset volume of a picture; volume and decoder of a frame."""
_Memory = Mapping[int, Event] | Mapping[tuple[int, str], Event]
Message = RunKey | Beat | Status | Frame | Shown


def run_key(session: str, run_id: str | None) -> str:
    """Name one run of one server, so that a browser never shows a cached picture of another.

    Run ids are unique within a server's life: a second take of a run has an id of its own.
    """
    return hashlib.blake2s(f"{session}/{run_id}".encode(), digest_size=8).hexdigest()


def newest_frame(broadcast: Broadcast) -> tuple[int, Event] | None:
    """Volume and event of the newest frame that the first decoder made of the open run."""
    first = broadcast.status.decoders[0].name
    volumes = [volume for volume, decoder in broadcast.frames if decoder == first]
    if not volumes:
        return None
    return max(volumes), broadcast.frames[max(volumes), first]


class Feed:
    """One page's view of the broadcast; ``session`` is a random name of the server."""

    def __init__(self, broadcast: Broadcast, session: str) -> None:
        self._broadcast = broadcast
        self._session = session
        self._key: str | None = None
        self._status: Status | None = None
        self._told: dict[str, dict[Key, Frame | Shown | Status]] = {}
        """Messages, not events: a page that is stuck must not keep the pictures of a run that is over."""

    async def follow(self) -> AsyncGenerator[str, None]:
        """JSON arrays of messages: first all of the run so far, then each message as it comes."""
        async with self._broadcast.listen() as queue:
            while True:
                news = self._news(await _drain(queue, BEAT_S))
                for start in range(0, len(news), BATCH):
                    yield msgspec.json.encode(news[start : start + BATCH]).decode()

    def _news(self, events: list[Event]) -> list[Message]:
        """The messages to send after these events from the queue."""
        news: list[Message] = []
        status = self._broadcast.status
        key = run_key(self._session, status.run_id)
        if key != self._key:
            self._key = key
            self._told.clear()
            news.append(RunKey(key))
        statuses = [event.message for event in events if isinstance(event.message, Status)]
        news.extend(told for told in statuses if told.run_id == status.run_id)
        if status is not self._status and status not in news:  # the queue lost it
            news.append(status)
        self._status = status
        news.extend(self._untold("shown", self._broadcast.shown))
        news.extend(self._untold("frame", self._broadcast.frames))
        return news or [Beat()]

    def _untold(self, kind: str, memory: _Memory) -> list[Message]:
        told = self._told.get(kind, {})
        kept = {key: event.message for key, event in memory.items()}
        fresh: list[Message] = [message for key, message in kept.items() if told.get(key) is not message]
        self._told[kind] = kept  # and none that was dropped
        return fresh


async def _drain(queue: asyncio.Queue[Event], timeout_s: float) -> list[Event]:
    """Every event in the queue; if it is empty, the first to come within the time."""
    try:
        async with asyncio.timeout(timeout_s):
            events = [await queue.get()]
    except TimeoutError:
        return []
    while not queue.empty():
        events.append(queue.get_nowait())
    return events
