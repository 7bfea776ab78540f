"""Follows a run's journal, growing or closed, from its records to its frames. The one way into a run.

    journal ─► run: order, preprocessing ─► window ─► decode loop ─► frames, rows

A live run, a run that is gone on with after a restart, and a run that is decoded again differ in two things:
whether the journal still grows, and the policy that says what is made of a window.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from realtime.errors import RecordError, WireError
from realtime.events import Event
from realtime.record.journal import JOURNAL, Entry, JournalReader
from realtime.runs.decode_loop import DecodeLoop
from realtime.runs.run import Run

_NOTES = {"complete": "", "aborted": "the scanner aborted the run"}


async def replay(run: Run, decoding: DecodeLoop, send: Callable[[Event], None]) -> None:
    """Follow a journal to its end as if it came now, every window in its turn; then close the run.

    :raises RealtimeError: when the journal is damaged, or a frame cannot be decoded
    """
    with JournalReader(run.folder.path / JOURNAL) as reader:
        while run.end is None and (entry := reader.read()):
            _take(run, entry, send, received_s=time.perf_counter())
            await decoding.decode_waiting(run)
    run.finish()
    await decoding.decode_waiting(run)
    run.close()


class Following:
    """Follows a journal while it grows.

    What is in it already is read first. Of the windows that it gives, only the newest is decoded.

    :param news: waits until the journal may have grown, at most so many seconds
    :param changed: is called after each change that the operator should see
    :param is_current: whether the recorder may still add to the run
    """

    def __init__(
        self,
        run: Run,
        decoding: DecodeLoop,
        *,
        news: Callable[[float], Awaitable[None]],
        send: Callable[[Event], None],
        changed: Callable[[], None],
        is_current: Callable[[], bool],
    ) -> None:
        self._run = run
        self._decoding = decoding
        self._news = news
        self._send = send
        self._changed = changed
        self._is_current = is_current
        self._under_way: asyncio.Task[None] | None = None

    async def follow(self) -> bool:
        """Return once the run is closed; False if its journal is gone, or the recorder has let go of it.

        :raises RecordError: when the journal is damaged, or the disk does not take the end of the run
        """
        run, was_decoded = self._run, not self._run.folder.is_fresh
        with JournalReader(run.folder.path / JOURNAL) as reader:
            past_end = reader.size
            while run.end is None:
                entry = reader.read()
                if entry and entry.end <= past_end:
                    # Of a run that has just begun, the first volume may have been quicker than this process.
                    self._take(entry, is_past=was_decoded or _age_s(entry) > run.start.tr_s)
                    await asyncio.sleep(0)
                    continue
                if past_end:
                    past_end = 0
                    self._caught_up(was_decoded=was_decoded)
                if entry:
                    self._take(entry, is_past=False)
                    self._changed()
                    await asyncio.sleep(0)
                elif reader.is_in_place and self._is_current():
                    await self._wait()
                else:
                    return False
        if past_end:  # the run has ended while nobody followed it
            self._caught_up(was_decoded=was_decoded)
        await self._end()
        return True

    async def stop(self) -> None:
        """Wait for the decode under way."""
        if self._under_way:
            await asyncio.wait({self._under_way})

    def _caught_up(self, *, was_decoded: bool) -> None:
        """All that was in the journal at first was read."""
        if was_decoded:
            self._run.tell(f"resumed at {self._run.where()} after a restart")
            self._run.folder.note(self._run.message)
        self._changed()

    def _take(self, entry: Entry, *, is_past: bool) -> None:
        received_s = time.perf_counter() - _age_s(entry)
        _take(self._run, entry, self._send, received_s=received_s, is_past=is_past)

    async def _wait(self) -> None:
        """Decode what is ready, and wait for more; time passes, too."""
        run = self._run
        before = run.account.counts
        run.expire(time.perf_counter())  # everything that has come so far was read
        if run.account.counts != before:
            self._changed()
        if self._under_way and self._under_way.done():
            self._under_way.result()
            self._under_way = None
            self._changed()
        if self._under_way is None and run.queue.is_waiting:
            self._under_way = asyncio.create_task(self._decoding.decode_waiting(run))
        news = asyncio.ensure_future(self._news(run.start.tr_s / 4))
        try:
            await asyncio.wait(
                {news, self._under_way} if self._under_way else {news}, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            news.cancel()

    async def _end(self) -> None:
        """Settle the volumes that have not come, wait for the last decode, and close the run."""
        run = self._run
        assert run.end
        note = _NOTES.get(run.end.reason, f"given up at {run.where()}: another run began")
        run.finish()
        if self._under_way:
            await self._under_way
        await self._decoding.decode_waiting(run)
        run.close(note)
        if note:
            run.tell(note)


def _age_s(entry: Entry) -> float:
    return max(0.0, time.time() - entry.received_utc_s)  # the clock may have been set back


def _take(
    run: Run, entry: Entry, send: Callable[[Event], None], *, received_s: float, is_past: bool = False
) -> None:
    try:
        event = run.take(entry, received_s, is_past=is_past)
    except WireError as error:
        raise RecordError(
            f"a record of the journal in {run.folder.path} is not a message: {error}"
        ) from error
    if event:
        send(event)
