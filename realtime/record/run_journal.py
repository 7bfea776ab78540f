"""A run as the recorder writes it: its folder with ``run.json``, once, and the journal, message by message.

The recorder keeps of each volume and picture only a checksum, so that its memory does not grow with the run.
Everything else in the folder is the decoder's (:mod:`realtime.record.folder`).
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from realtime import wire
from realtime.atomic import whole
from realtime.errors import RecordError, WireError
from realtime.record.journal import JOURNAL, Head, Journal, read_heads, read_journal
from realtime.record.run_json import RunFile, is_sealed, read_run_file, take_path, takes_of
from realtime.record.storage import Folder

_UNKNOWN = -1
"""Checksum of a volume that was recorded without one."""

_log = logging.getLogger(__name__)


class RunJournal:
    """An open run; one process at a time may have it.

    :raises RecordError: from every method, when the disk does not take what is written
    """

    def __init__(self, folder: Folder, info: RunFile) -> None:
        """Use :meth:`create` or :meth:`reopen`."""
        self.path = folder.path
        self.info = info
        self.start = info.start
        self.is_over = False
        """Whether its end is in the journal."""
        self._folder = folder
        try:
            self._journal = Journal(folder)
        except RecordError:
            folder.close()
            raise
        self.newest: int | None = None
        """The highest index in the journal."""
        self._volumes: dict[int, int] = {}
        self._pictures: dict[int, int] = {}
        self._unread_pictures: dict[int, Head] = {}
        """Those of before a restart: to read all of a long run would take long, and few come again."""

    @classmethod
    def create(cls, root: Path, info: RunFile) -> RunJournal:
        """Make the folder of a run's next take under ``root``; it appears when it is complete."""

        def fill(folder: Folder) -> None:
            with contextlib.closing(Journal(folder)) as journal:
                journal.append(wire.encode(info.start), b"", _opened_s(info))

        return cls(_make_take(root, info, fill), info)

    @classmethod
    def reopen(cls, path: Path) -> RunJournal:
        """Go on with a run that was left open; a record that a crash tore is cut off."""
        info = read_run_file(path)
        run = cls(Folder.open(path, to_write=True), info)
        try:
            run._journal.cut(run._take_heads())
        except RecordError:
            run.close()
            raise
        return run

    @property
    def held(self) -> list[tuple[int, int]]:
        """The volumes in the journal, as half-open ranges."""
        ranges: list[tuple[int, int]] = []
        for index in sorted(self._volumes):
            if ranges and ranges[-1][1] == index:
                ranges[-1] = (ranges[-1][0], index + 1)
            else:
                ranges.append((index, index + 1))
        return ranges

    @property
    def n_volumes(self) -> int:
        """How many volumes are in the journal."""
        return len(self._volumes)

    @property
    def is_closed(self) -> bool:
        """Whether it takes nothing any more."""
        return self._journal.is_closed

    def add_volume(self, message: wire.Volume, payload: memoryview, received_utc_s: float) -> bool:
        """Append a volume with a checksum; False if the same volume is there already.

        :raises WireError: code ``duplicate``, when a volume of this index with other voxels is there
        """
        if message.crc32 is None:
            message = wire.with_checksum(message, payload)
        assert message.crc32 is not None
        known = self._volumes.get(message.index)
        if known is not None:
            if known not in (_UNKNOWN, message.crc32):
                raise WireError(
                    "duplicate",
                    f"volume {message.index} came again with other voxels; the first that came is kept",
                )
            return False
        self._journal.append(wire.encode(message), payload, received_utc_s)
        self._hold(message.index, message.crc32)
        return True

    def add_marker(self, message: wire.Marker, png: memoryview, received_utc_s: float) -> bool:
        """Append a marker with its picture; False if the same marker is there already.

        :raises WireError: code ``picture``, when the volume has another picture
        """
        known, checksum = self._picture(message.onset_volume), zlib.crc32(png)
        if known is not None:
            if known != checksum:
                raise WireError(
                    "picture",
                    f"expected the same picture as before for volume {message.onset_volume}, got another; "
                    "check that presentation software names the right run",
                )
            return False
        self._journal.append(wire.encode(message), png, received_utc_s)
        self._pictures[message.onset_volume] = checksum
        return True

    def add_return(self, received_utc_s: float) -> None:
        """Append that the scanner is back: its start once more. The decoder gives it time to fill gaps."""
        self._journal.append(wire.encode(self.start), b"", received_utc_s)

    def end(self, message: wire.RunEnd, received_utc_s: float) -> None:
        """Append the run's end and wait until the disk has all of the journal."""
        if not self.is_over:
            self._journal.append(wire.encode(message), b"", received_utc_s)
            self.is_over = True
        self._journal.sync()

    def close(self) -> None:
        """Close the journal; a run without its end stays open, to be gone on with later."""
        try:
            self._journal.close()
        finally:
            self._folder.close()

    def rescue(self, root: Path) -> RunJournal:
        """Go on after another program has deleted the folder, or cut the journal.

        What was appended to a deleted or replaced journal is copied to a new folder under ``root``: the
        file's content is there as long as it is open, so this can be tried again where the disk does not take
        it. What was cut off is lost, and no longer held.

        :raises RecordError: when the run cannot go on, or not yet
        """
        if self._journal.is_in_place and self._folder.has("run.json"):
            self.abandon()
            return RunJournal.reopen(self.path)
        folder = _make_take(root, self.info, self._journal.copy_to)
        folder.close()
        self.abandon()
        return RunJournal.reopen(folder.path)

    def abandon(self) -> None:
        """Close a journal that is gone, whatever the disk says."""
        with contextlib.suppress(RecordError):
            self.close()

    def _hold(self, index: int, crc32: int) -> None:
        self._volumes[index] = crc32
        self.newest = index if self.newest is None else max(self.newest, index)

    def _picture(self, onset_volume: int) -> int | None:
        """The checksum of the picture at a volume; None if there is none."""
        if head := self._unread_pictures.pop(onset_volume, None):
            self._pictures[onset_volume] = self._journal.checksum(head.payload_start, head.end)
        return self._pictures.get(onset_volume)

    def _take_heads(self) -> int:
        """Learn what the journal holds; returns where its last whole record ends."""
        end = 0
        for head in read_heads(self.path / JOURNAL):
            end = head.end
            message = _message(head, self.path)
            if isinstance(message, wire.Volume):
                self._hold(message.index, _UNKNOWN if message.crc32 is None else message.crc32)
            elif isinstance(message, wire.Marker):
                self._unread_pictures[message.onset_volume] = head
            self.is_over = isinstance(message, wire.RunEnd)
        return end


def copy_run(recorded: Path, root: Path, info: RunFile, files: Mapping[str, bytes]) -> Path:
    """Make a run folder with the journal of a recorded run, and these files.

    :param info: becomes its ``run.json``
    :raises RecordError: when the journal is damaged, or the folder cannot be made
    """

    def fill(folder: Folder) -> None:
        with contextlib.closing(Journal(folder)) as journal:
            for entry in read_journal(recorded / JOURNAL):
                journal.append(entry.header, entry.payload, entry.received_utc_s)
        for name, content in files.items():
            folder.write_whole(name, content)

    with _make_take(root, info, fill) as folder:
        return folder.path


def has_ended(path: Path) -> bool:
    """Whether a run's end was recorded; only a closed run is sealed.

    :raises RecordError: when the folder cannot be read
    """
    if is_sealed(path) or read_run_file(path).state == "closed":
        return True
    last = None
    for head in read_heads(path / JOURNAL):
        last = head
    return last is not None and isinstance(_message(last, path), wire.RunEnd)


def _message(head: Head, path: Path) -> wire.ToRuntime:
    try:
        return wire.decode_to_runtime(head.header)
    except WireError as error:
        raise RecordError(f"a record of the journal in {path} is not a message: {error}") from error


def open_folders(out: Path, bundle_sha256: str) -> list[Path]:
    """Run folders under ``out`` that are not closed and were begun with this bundle, the newest first."""
    found = []
    for path in _folders(out):
        try:
            info = read_run_file(path)
        except RecordError as error:
            _log.warning("ignored a run folder: %s", error)
            continue
        is_ours = info.replay_of is None and info.bundle_sha256 == bundle_sha256
        if info.state == "open" and is_ours:
            found.append((info.opened_utc, path))
    return [path for _, path in sorted(found, reverse=True)]


def _folders(out: Path) -> list[Path]:
    """The folders under ``out`` with a ``run.json``; a hidden one is one that a crash left half-made."""
    try:
        return [file.parent for file in out.glob("[!.]*/run.json")]
    except OSError as error:
        _log.warning("cannot look for runs in %s: %s", out, error.strerror or error)
        return []


def _next_take(root: Path, run_id: str) -> Path:
    try:
        return take_path(root, run_id, len(list(takes_of(root, run_id))) + 1)
    except OSError as error:
        raise RecordError(f"cannot look for earlier takes in {root}: {error.strerror or error}") from error


def _make_take(root: Path, info: RunFile, fill: Callable[[Folder], None]) -> Folder:
    """Make the folder of a run's next take; it appears when ``fill`` has made it complete."""
    path = _next_take(root, info.start.run_id)
    try:
        with whole(path, replaces=False) as partial:
            with Folder.create(partial) as folder:
                folder.write_whole("run.json", msgspec.json.format(msgspec.json.encode(info), indent=2))
                fill(folder)
            if path.exists():
                raise RecordError(f"another runtime has just made the folder {path}; start the run again")
    except OSError as error:
        raise RecordError(f"cannot make the run folder {path}: {error.strerror or error}") from error
    return Folder.open(path, to_write=True)


def _opened_s(info: RunFile) -> float:
    return datetime.fromisoformat(info.opened_utc).timestamp()
