"""The journal of a run: every message that was accepted, in order of arrival, in one append-only file.

    file    = magic, record*
    record  = head, header (the message's msgpack header), payload (voxels or PNG, as they came)
    head    = "RTJ1", header bytes u32, payload bytes u64, received (UTC seconds) f64, CRC-32 u32

Numbers are little endian. A record is written before its message is acknowledged. It survives the death of
the process, ``kill -9`` too. Records are not synced to the disk one by one, so a power cut may lose the last
seconds; the file is synced when the run closes. A record that a full disk takes only in part is removed
again, so that the file stays whole. Voxels are stored as they came, because compressing a whole-brain volume
takes longer than everything else between its arrival and the decoder.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from realtime.errors import RecordError, RecordGoneError
from realtime.record.storage import Folder, is_same, lock, write_all
from realtime.wire import MAX_HEADER_BYTES, MAX_VOLUME_BYTES

JOURNAL = "volumes.journal"
MAGIC = b"realtime journal 1\n"
_MARK = b"RTJ1"
_HEAD = struct.Struct("<4sIQd")
_CRC = struct.Struct("<I")
_OVERHEAD = _HEAD.size + _CRC.size
_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record of the file."""

    header: bytes
    payload: bytes
    received_utc_s: float
    end: int
    """Offset of the first byte after it."""


class Journal:
    """Appends to a journal; holds a lock on it, so that two recorders never write the same run.

    :raises RecordError: when the file cannot be written or another process holds it.
    """

    def __init__(self, folder: Folder, name: str = JOURNAL) -> None:
        self.path = folder.path / name
        self._folder, self._name = folder, name
        self._descriptor = folder.open_append(name)
        try:
            self._reading = folder.open_read(name)
        except RecordError:
            os.close(self._descriptor)
            raise
        self.is_closed = False
        try:
            lock(self._descriptor)
            self._end = os.fstat(self._descriptor).st_size
            if self._end < len(MAGIC):
                self.cut(0)
        except (BlockingIOError, PermissionError) as error:
            self._close()
            raise RecordError(f"{self.path} is in use by another runtime; choose another --out") from error
        except OSError as error:
            self._close()
            raise RecordError(
                f"cannot lock {self.path}: {error.strerror or error}; choose an --out on a local disk"
            ) from error
        except RecordError:
            self._close()
            raise

    def append(self, header: bytes, payload: bytes | memoryview, received_utc_s: float) -> None:
        """Write one record and hand it to the operating system.

        :raises RecordError: when the disk does not take it; the part that was written is removed again
        """
        head = _HEAD.pack(_MARK, len(header), len(payload), received_utc_s)
        checksum = zlib.crc32(payload, zlib.crc32(header, zlib.crc32(head)))
        self._write(b"".join((head, _CRC.pack(checksum), header, payload)))

    def cut(self, end: int) -> None:
        """Drop a torn record: everything from offset ``end`` on. Within the magic, begin the file again."""
        self._end = end if end >= len(MAGIC) else 0
        self._take_back()
        if self._end == 0:
            self._write(MAGIC)

    def sync(self) -> None:
        """Wait until the disk has what was written.

        :raises RecordError: when the disk fails; the journal stays open, and more can be appended
        """
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise RecordError(f"cannot sync {self.path} to the disk: {error.strerror or error}") from error

    def close(self) -> None:
        """Sync to the disk, then close and unlock.

        :raises RecordError: when the disk fails; the journal is closed nevertheless
        """
        if self.is_closed:
            return
        try:
            self.sync()
        finally:
            self._close()

    def checksum(self, start: int, stop: int) -> int:
        """CRC-32 of a part of the file.

        :raises RecordError: when it cannot be read
        """
        try:
            return zlib.crc32(os.pread(self._reading, stop - start, start))
        except OSError as error:
            raise RecordError(f"cannot read {self.path}: {error.strerror or error}") from error

    @property
    def is_in_place(self) -> bool:
        """Whether the file is still what its path names, though it may have been cut."""
        return not self.is_closed and is_same(self._descriptor, self._folder, self._name)

    def copy_to(self, folder: Folder) -> None:
        """Write what was appended so far to a journal in another folder; possible after this was deleted.

        :raises RecordError: when the new file cannot be written
        """
        descriptor = folder.open_append(self._name)
        try:
            copied = 0
            while block := os.pread(self._reading, _BLOCK_BYTES, copied):
                write_all(descriptor, block)
                copied += len(block)
        except OSError as error:
            raise RecordError(
                f"cannot copy {self.path} to {folder.path}: {error.strerror or error}"
            ) from error
        finally:
            os.close(descriptor)

    def _close(self) -> None:
        self.is_closed = True
        os.close(self._descriptor)
        os.close(self._reading)

    def _write(self, data: bytes) -> None:
        try:
            size = os.fstat(self._descriptor).st_size
            if size < self._end:
                raise RecordGoneError(
                    f"expected {self._end} bytes in {self.path}, found {size}: another program cut the file"
                )
            if size > self._end:
                self._take_back()  # a part that could not be taken back when it was written
            write_all(self._descriptor, data)
        except OSError as error:
            self._take_back()
            raise RecordError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._end += len(data)
        # What is written to a file without a name is lost when the process ends, so it is not acknowledged.
        if not is_same(self._descriptor, self._folder, self._name):
            raise RecordGoneError(f"{self.path} was deleted or replaced while the run was recorded")

    def _take_back(self) -> None:
        """Drop what follows the last whole record."""
        try:
            os.ftruncate(self._descriptor, self._end)
        except OSError as error:
            raise RecordError(f"cannot cut {self.path}: {error.strerror or error}") from error


class JournalReader:
    """Reads records in order, of a journal that is complete or one that a recorder still appends to.

    :raises RecordError: when the file is no journal or cannot be opened
    """

    def __init__(self, path: Path, at: int = 0) -> None:
        """Open a journal.

        :param at: where to begin, the end of a record; 0: with the first
        """
        self.path = path
        with Folder.open(path.parent, to_write=False) as folder:
            # Without a buffer: it would keep the torn record of a recorder that died, after the next one has
            # written another in its place.
            self._file = os.fdopen(folder.open_read(path.name), "rb", buffering=0)
        self._at = at

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def read(self) -> Entry | None:
        """The next whole record; None if there is none yet, or only a part of one.

        :raises RecordError: when the file cannot be read, or is damaged before its end
        """
        try:
            size = os.fstat(self._file.fileno()).st_size
            self._file.seek(self._at)
            if self._at == 0:
                magic = self._file.read(len(MAGIC))
                if magic != MAGIC and not MAGIC.startswith(magic):
                    raise RecordError(
                        f"expected a run's journal in {self.path}, found another file; give a run's folder"
                    )
                if len(magic) < len(MAGIC):
                    return None
                self._at = len(MAGIC)
            entry = _read_entry(self._file, self.path, size)
        except OSError as error:
            raise RecordError(f"cannot read {self.path}: {error.strerror or error}") from error
        if entry:
            self._at = entry.end
        return entry

    def heads(self) -> Iterator[Head]:
        """As :func:`read_heads`, from the next record on."""
        while True:
            try:
                head = self._skip()
            except OSError as error:
                raise RecordError(f"cannot read {self.path}: {error.strerror or error}") from error
            if head is None:
                return
            yield head

    def _skip(self) -> Head | None:
        """The next record's head; whatever is unusual, and the last record, is read in full instead."""
        size = os.fstat(self._file.fileno()).st_size
        start = self._at
        if start:
            self._file.seek(start)
            head = self._file.read(_OVERHEAD)
            if len(head) == _OVERHEAD:
                mark, n_header, n_payload, received_utc_s = _HEAD.unpack_from(head)
                end = start + _OVERHEAD + n_header + n_payload
                if mark == _MARK and n_header <= MAX_HEADER_BYTES and end < size:
                    header = self._file.read(n_header)
                    self._at = end
                    return Head(
                        header=header,
                        received_utc_s=received_utc_s,
                        payload_start=end - n_payload,
                        end=end,
                    )
        entry = self.read()
        if entry is None:
            return None
        return Head(
            header=entry.header,
            received_utc_s=entry.received_utc_s,
            payload_start=entry.end - len(entry.payload),
            end=entry.end,
        )

    def entry(self, head: Head) -> Entry:
        """A record in full; what is read next stays as it is.

        :raises RecordError: when the file cannot be read, or the record is damaged
        """
        start = head.payload_start - len(head.header) - _OVERHEAD
        try:
            self._file.seek(start)
            entry = _read_entry(self._file, self.path, head.end)
        except OSError as error:
            raise RecordError(f"cannot read {self.path}: {error.strerror or error}") from error
        if entry is None:
            raise _damaged(self.path, start, "a record's checksum does not fit")
        return entry

    @property
    def size(self) -> int:
        """Bytes of the file now."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def is_in_place(self) -> bool:
        """Whether the file is still what its path names; False once it was deleted, replaced or cut."""
        try:
            ours = os.fstat(self._file.fileno())
            return ours.st_size >= self._at and os.path.samestat(ours, os.stat(self.path))
        except OSError:
            return False

    @property
    def is_between_records(self) -> bool:
        """Whether this reader still stands where a record ends; False once the file was cut and grew again.

        :raises RecordError: when the journal is damaged before this place
        """
        return any(head.end == self._at for head in read_heads(self.path))


def read_journal(path: Path) -> Iterator[Entry]:
    """Every whole record of a journal in order; a last record that was torn by a crash is left out.

    :raises RecordError: when the file is no journal, cannot be read, or is damaged before its end
    """
    with JournalReader(path) as reader:
        while entry := reader.read():
            yield entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A record without its payload, and where that lies in the file."""

    header: bytes
    received_utc_s: float
    payload_start: int
    end: int


def read_heads(path: Path) -> Iterator[Head]:
    """Every record's head in order, without reading payloads: 10 000 volumes take a fraction of a second.

    Only the last record's checksum is verified, because a crash can tear only that one; it is left out then.

    :raises RecordError: when the file is no journal, cannot be read, or is damaged before its end
    """
    with JournalReader(path) as reader:
        yield from reader.heads()


def _read_entry(file: BinaryIO, path: Path, size: int) -> Entry | None:
    """The next record; None at the end of the file, and at a torn record that nothing follows."""
    start = file.tell()
    head = file.read(_OVERHEAD)
    if len(head) < _OVERHEAD or _is_blank(head, file):
        return None
    mark, n_header, n_payload, received_utc_s = _HEAD.unpack_from(head)
    if mark != _MARK or n_header > MAX_HEADER_BYTES or n_payload > MAX_VOLUME_BYTES:
        raise _damaged(path, start, "expected the head of a record")
    end = start + _OVERHEAD + n_header + n_payload
    if end > size:  # checked before memory is allocated for the payload
        if _holds_another(file, start + 1, size):
            raise _damaged(path, start, "a record overlaps the next")
        return None
    header, payload = file.read(n_header), file.read(n_payload)
    checksum = zlib.crc32(payload, zlib.crc32(header, zlib.crc32(head[: _HEAD.size])))
    if checksum != _CRC.unpack_from(head, _HEAD.size)[0]:
        if end == size or not _holds_another(file, start + 1, size):
            return None
        raise _damaged(path, start, "a record's checksum does not fit")
    return Entry(header=header, payload=payload, received_utc_s=received_utc_s, end=end)


def _damaged(path: Path, start: int, what: str) -> RecordError:
    return RecordError(
        f"{path} is damaged at byte {start}: {what}; put a copy of the file in its place. What was decoded "
        "before is in the folder's tables and frames"
    )


def _is_blank(head: bytes, file: BinaryIO) -> bool:
    """Whether only zeros follow: a power cut can leave them at the end of a file that was growing."""
    if any(head):
        return False
    after = file.tell()
    while block := file.read(_BLOCK_BYTES):
        if any(block):
            file.seek(after)
            return False
    return True


def _holds_another(file: BinaryIO, start: int, size: int) -> bool:
    """Whether a whole record begins at or after ``start``; if so, the one before it is damaged, not torn."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_MARK, start)
        while 0 <= at <= size - _OVERHEAD:
            _, n_header, n_payload, _ = _HEAD.unpack_from(data, at)
            end = at + _OVERHEAD + n_header + n_payload
            if n_header <= MAX_HEADER_BYTES and n_payload <= MAX_VOLUME_BYTES and end <= size:
                checksum = zlib.crc32(data[at + _OVERHEAD : end], zlib.crc32(data[at : at + _HEAD.size]))
                if checksum == _CRC.unpack_from(data, at + _HEAD.size)[0]:
                    return True
            at = data.find(_MARK, at + 1)
    return False
