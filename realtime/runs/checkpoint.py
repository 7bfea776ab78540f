"""The state of a run at a place in its journal, so that a decoder that is started again need not read it all.

To preprocess 10 000 volumes again takes minutes. So the decoder of a long run saves its state from time to
time in the run folder, and removes it when the run closes. The state goes with the journal up to a byte and
with the rows written by then, so that every later window is bit for bit that of a decoder that was not
stopped. A checkpoint that is damaged, or that does not fit run, journal, table or versions, is ignored: then
the whole journal is read.

    file = magic, CRC-32 u32, about bytes u32, about (msgpack), arrays (in the order of their names)

The CRC is of all that follows it. Names, types and shapes of the arrays follow from the run.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from realtime.errors import RecordError
from realtime.record.run_json import RunFile, versions

CHECKPOINT = "decoder.checkpoint"
PAYS_S = 0.75
"""A checkpoint is written once reading the journal from the one before would take as long."""

_MAGIC = b"realtime checkpoint 1\n"
_HEAD = struct.Struct("<II")
_MAX_ABOUT_BYTES = 2**20

Arrays = Mapping[str, NDArray[Any]]


class WaitingWindow(msgspec.Struct, frozen=True, kw_only=True):
    """The newest window, where it was not decoded yet; its numbers are the array ``window``."""

    volume: int
    state: Literal["warming", "trusted"]
    repaired_voxels: int
    preprocess_ms: float


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint belongs to, and all of it that is not an array."""

    run: bytes
    """Of :func:`digest_of`."""
    journal_end: int
    """Where the records end that were read."""
    headers_sha256: bytes
    """Of their headers, which hold their volumes' checksums."""
    next_index: int
    """The volume whose turn is next; none waits for its turn."""
    is_trusted: bool
    open_volumes: tuple[int, ...]
    """Volumes before the next without a final state: their windows wait, or are being decoded."""
    waiting: WaitingWindow | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The state of a run, as copies that do not change."""

    about: About
    arrays: Arrays
    """The preprocessor's state; with a window that waits, also ``window`` [V, T]."""

    def as_bytes(self) -> bytes:
        """The content of the file."""
        about = msgspec.msgpack.encode(self.about)
        arrays = [np.ascontiguousarray(self.arrays[name]).data for name in sorted(self.arrays)]
        size = struct.pack("<I", len(about))
        checksum = zlib.crc32(about, zlib.crc32(size))
        for array in arrays:
            checksum = zlib.crc32(array, checksum)
        return b"".join((_MAGIC, struct.pack("<I", checksum), size, about, *arrays))


def parse(content: bytes, like: Arrays, window: NDArray[np.float32]) -> Checkpoint:
    """The checkpoint in a file.

    :param like: arrays of the names, types and shapes that are expected
    :param window: the same for the window, if one waits
    :raises RecordError: when the file is damaged, or of another region or window
    """
    start = len(_MAGIC) + _HEAD.size
    if len(content) < start or not content.startswith(_MAGIC):
        raise RecordError("it is no checkpoint of this format")
    checksum, n_about = _HEAD.unpack_from(content, len(_MAGIC))
    if zlib.crc32(memoryview(content)[len(_MAGIC) + 4 :]) != checksum:
        raise RecordError("it is damaged: its checksum does not fit")
    try:
        about = msgspec.msgpack.decode(content[start : start + n_about], type=About)
    except (msgspec.MsgspecError, RecursionError) as error:  # the latter: of deep nesting
        raise RecordError(f"it is damaged: {error}") from error
    expected = {**like, "window": window} if about.waiting else like
    at, arrays = start + n_about, {}
    if len(content) != at + sum(array.nbytes for array in expected.values()):
        raise RecordError("it is of another region or run")
    for name, array in sorted(expected.items()):
        read = np.frombuffer(content, array.dtype, math.prod(array.shape), at)
        arrays[name], at = read.reshape(array.shape).copy(), at + array.nbytes
    return Checkpoint(about=about, arrays=arrays)


def max_bytes(like: Arrays, window: NDArray[np.float32]) -> int:
    """No checkpoint with such arrays is larger."""
    return _MAX_ABOUT_BYTES + window.nbytes + sum(array.nbytes for array in like.values())


def digest_of(info: RunFile) -> bytes:
    """Of all that, besides the volumes, decides what the state is."""
    made_by = (
        info.start,
        info.bundle_sha256,
        info.prior_from,
        info.spikes,
        info.registration,
        versions(),
    )
    return hashlib.sha256(msgspec.msgpack.encode(made_by)).digest()
