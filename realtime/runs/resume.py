"""Lets a run go on from its checkpoint (:mod:`realtime.runs.checkpoint`), if it has one that fits."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator

from realtime import wire
from realtime.errors import RealtimeError, RecordError
from realtime.events import KEPT
from realtime.record.journal import JOURNAL, Entry, Head, JournalReader
from realtime.record.storage import exists, read_file
from realtime.runs.checkpoint import CHECKPOINT, About, Checkpoint, max_bytes, parse
from realtime.runs.run import Run

_log = logging.getLogger(__name__)


def passed(run: Run) -> Iterator[Entry | Head]:
    """Let a run go on from its checkpoint; the records before it, in full where the head is not enough.

    It is for a volume. It is for a picture that is in the folder, except for the newest, which a page shows.
    There are none if the run has no checkpoint, or one that does not fit; the run is then as it was.

    :raises RecordError: when another record in the journal is damaged
    """
    path = run.folder.path
    if not exists(path / CHECKPOINT):
        return
    with JournalReader(path / JOURNAL) as journal:
        try:
            saved = _read(run)
            heads = list(_heads_before(saved.about, journal))
            run.resume(saved)
        except RealtimeError as error:
            _log.warning("the checkpoint of %s is ignored, its journal is read instead: %s", run.name, error)
            return
        onsets = sorted(message.onset_volume for _, message in heads if isinstance(message, wire.Marker))
        newest = set(onsets[-KEPT:])
        for head, message in heads:
            if isinstance(message, wire.Marker) and message.onset_volume not in newest:
                is_enough = run.folder.has_picture(message, head.end - head.payload_start)
            else:
                is_enough = isinstance(message, wire.Volume)
            yield head if is_enough else journal.entry(head)


def _read(run: Run) -> Checkpoint:
    """The checkpoint of a run, with which its table agrees."""
    like, window = run.region.state(), run.region.empty_window
    content = read_file(run.folder.path / CHECKPOINT, max_bytes(like, window))
    saved = parse(content, like, window)
    about = saved.about
    if about.run != run.digest:
        raise RecordError("it is of another run or bundle, or made with other versions")
    if not int(saved.arrays["index"]) < about.next_index <= run.start.n_volumes:
        raise RecordError("its volumes do not fit the run")
    for volume in set(range(about.next_index)).difference(about.open_volumes):
        if run.account.state_of(volume) is None:
            raise RecordError(f"the row of volume {volume} is not in the table")
    return saved


def _heads_before(about: About, journal: JournalReader) -> Iterator[tuple[Head, wire.ToRuntime]]:
    """The heads of the records that were read before a checkpoint, with their messages."""
    headers, end = hashlib.sha256(), 0
    for head in journal.heads():
        if head.end > about.journal_end:
            break
        message = wire.decode_to_runtime(head.header)
        if isinstance(message, wire.Volume) and message.index >= about.next_index:
            raise RecordError(f"volume {message.index} had not had its turn")
        headers.update(head.header)
        end = head.end
        yield head, message
    if end != about.journal_end or headers.digest() != about.headers_sha256:
        raise RecordError("the journal has changed since")
