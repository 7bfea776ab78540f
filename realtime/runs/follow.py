"""Follows a run's journal, growing or closed, from its records to its frames. The one way into a run.

    journal ─► run: order, preprocessing ─► window ─► decode loop ─► frames, rows

A live run, a run that is gone on with after a restart, and a run that is decoded again differ in two things:
whether the journal still grows, and the policy that says what is made of a window.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

from realtime.errors import RecordError, WireError
from realtime.events import Event
from realtime.record.folder import RunFolder
from realtime.record.journal import JOURNAL, Entry, Head, JournalReader
from realtime.runs.checkpoint import CHECKPOINT, PAYS_S, Checkpoint
from realtime.runs.decode_loop import DecodeLoop
from realtime.runs.resume import passed
from realtime.runs.run import Run

_log = logging.getLogger(__name__)

_AT_ONCE = 100
"""Records before a checkpoint that are taken before anything else has its turn: together a few ms."""
_NOTES = {"complete": "", "aborted": "the scanner aborted the run"}


async def replay(run: Run, decoding: DecodeLoop, send: Callable[[Event], None]) -> None:
    """Follow a journal to its end as if it came now, every window in its turn; then close the run.

    :raises RealtimeError: when the journal is damaged, or a frame cannot be decoded
    """
    with JournalReader(run.folder.path / JOURNAL) as reader:
        while run.end is None and (entry := reader.read()):
            if event := _take(run, entry, received_s=time.perf_counter()):
                send(event)
            await decoding.decode_waiting(run)
    run.finish()
    await decoding.decode_waiting(run)
    run.close()


class Following:
    """Follows a journal while it grows.

    What is in it already is read first, from the run's checkpoint on if it has one. Of the windows that it
    gives, only the newest is decoded.

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
        self._unsaved_s = 0.0
        """What it took to read the records since the checkpoint."""
        self._saving: asyncio.Task[None] | None = None

    async def follow(self) -> bool:
        """Return once the run is closed; False if its journal is gone, or the recorder has let go of it.

        :raises RecordError: when the journal is damaged, or the disk does not take the end of the run
        """
        try:
            if await self._follow():
                await self._end()
                return True
            return False
        finally:
            await self._saved()

    async def _follow(self) -> bool:
        """Return once the end of the run was read; False if its journal is gone, or let go of."""
        run, was_decoded = self._run, not self._run.folder.is_fresh
        for n_passed, record in enumerate(passed(run)):
            await self._take(record, is_past=True)
            if n_passed % _AT_ONCE == 0:
                await asyncio.sleep(0)
        with JournalReader(run.folder.path / JOURNAL, at=run.journal_end) as reader:
            past_end = reader.size
            while run.end is None:
                began_s = time.perf_counter()
                try:
                    entry = reader.read()
                except RecordError:
                    if reader.is_between_records:
                        raise
                    return False  # it was cut, and the recorder went on from there
                was_there = entry is not None and entry.end <= past_end
                if past_end and not was_there:
                    past_end = 0
                    self._caught_up(was_decoded=was_decoded)
                if entry:
                    # Of a run that has just begun, the first volume may have been quicker than this process.
                    is_past = was_there and (was_decoded or _age_s(entry) > run.start.tr_s)
                    await self._take(entry, is_past=is_past)
                    self._unsaved_s += time.perf_counter() - began_s
                    if is_past:
                        self._save_if_it_pays()
                    else:
                        self._changed()
                    await asyncio.sleep(0)
                elif reader.is_in_place and self._is_current():
                    await self._wait()
                else:
                    return False
        if past_end:  # the run has ended while nobody followed it
            self._caught_up(was_decoded=was_decoded)
        return True

    async def stop(self) -> None:
        """Wait for the decode under way."""
        if self._under_way:
            await asyncio.wait({self._under_way})

    def _caught_up(self, *, was_decoded: bool) -> None:
        """All that was in the journal at first was read."""
        if was_decoded:
            self._run.tell(f"resumed at {self._run.where()} after a restart")
            try:
                self._run.folder.note(self._run.message)
            except RecordError as error:  # no reason to decode nothing
                self._run.disk_failed(error)
        self._changed()

    async def _take(self, entry: Entry | Head, *, is_past: bool) -> None:
        """Take a record; in a thread if it takes seconds, so that signs of life go on."""
        take = partial(
            _take, self._run, entry, received_s=time.perf_counter() - _age_s(entry), is_past=is_past
        )
        is_slow = self._run.region.is_searching and self._under_way is None
        event = await asyncio.to_thread(take) if is_slow else take()
        if event:
            self._send(event)

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
        self._save_if_it_pays()
        news = asyncio.ensure_future(self._news(run.start.tr_s / 4))
        try:
            await asyncio.wait(
                {news, self._under_way} if self._under_way else {news}, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            news.cancel()

    def _save_if_it_pays(self) -> None:
        """Save the run's state between two frames; where there is no time between them, during a decode."""
        pays_s = PAYS_S if self._under_way is None else 2 * PAYS_S
        if self._unsaved_s < pays_s or (self._saving and not self._saving.done()):
            return
        if saved := self._run.checkpoint():
            self._unsaved_s = 0.0
            self._saving = asyncio.create_task(asyncio.to_thread(_save, self._run.folder, saved))

    async def _saved(self) -> None:
        """Wait for the checkpoint that is being written: its folder must stay open."""
        if self._saving:
            await asyncio.wait({self._saving})

    async def _end(self) -> None:
        """Settle the volumes that have not come, wait for the last decode, and close the run."""
        run = self._run
        assert run.end
        note = _NOTES.get(run.end.reason, f"given up at {run.where()}: another run began")
        run.finish()
        if self._under_way:
            await self._under_way
        await self._decoding.decode_waiting(run)
        await self._saved()
        run.close(note)
        if note:
            run.tell(note)


def _age_s(entry: Entry | Head) -> float:
    return max(0.0, time.time() - entry.received_utc_s)  # the clock may have been set back


def _take(run: Run, entry: Entry | Head, *, received_s: float, is_past: bool = False) -> Event | None:
    try:
        return run.take(entry, received_s, is_past=is_past)
    except WireError as error:
        raise RecordError(
            f"a record of the journal in {run.folder.path} is not a message: {error}"
        ) from error


def _save(folder: RunFolder, saved: Checkpoint) -> None:
    try:
        folder.write_file(CHECKPOINT, saved.as_bytes())
    except RecordError as error:  # a restart takes longer, nothing is lost
        _log.warning("cannot save the state of %s: %s", folder.path.name, error)
