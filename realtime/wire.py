"""Messages between scanner and runtime, and their framing. Pure: bytes in, messages out.

A scanner (ZeroMQ DEALER) connects to the runtime (ROUTER). Every message has two frames: a msgpack header,
tagged with its kind and versioned, and a raw C-order buffer (empty where the kind carries none).

    scanner                         runtime
    RunStart            ──►
                        ◄──         RunAccepted(held)      or Refused
    Marker + PNG        ──►
                        ◄──         MarkerAck
    Volume + voxels     ──►
                        ◄──         Ack                    once the volume is in the journal
    RunEnd              ──►
                        ◄──         RunClosed

The sender keeps what is not acknowledged. When replies stay out it sends RunStart again; ``held`` then tells
which volumes the runtime has, and all others are sent again. So a crash on either side loses nothing.
"""

from __future__ import annotations

import math
import zlib
from itertools import chain, pairwise
from typing import Annotated, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from realtime.errors import WireError

WIRE_VERSION = 1
MAX_HEADER_BYTES = 16_384
MAX_REPLY_BYTES = 2**20
"""Room for the list of ``held`` volumes of the longest run with every second one missing."""
MAX_VOLUME_BYTES = 256 * 2**20
MAX_PICTURE_BYTES = 4 * 2**20
DTYPES = ("int16", "uint16", "int32", "float32", "float64")

RunId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,95}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
# A drift basis grows with its square; this is a run of 3.7 hours at 4/3 s.
RunLength = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Edge = Annotated[int, msgspec.Meta(ge=1, le=1_024)]
Row4 = tuple[float, float, float, float]
Affine = tuple[Row4, Row4, Row4, Row4]
"""From voxel indices to mm, where x rises to the right, y to the front, z upwards."""

T = TypeVar("T")


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every message has. Values are checked when a header is read, beyond types not when one is made."""

    version: int = WIRE_VERSION
    run_id: RunId


class RunStart(_Message, frozen=True, kw_only=True, tag="run_start", tag_field="kind"):
    """A run begins: who is scanned, and what every volume of the run will look like."""

    subject: Annotated[int, msgspec.Meta(ge=1, le=99_999)]
    tr_s: Annotated[float, msgspec.Meta(gt=0, le=60)]
    n_volumes: RunLength
    shape: tuple[Edge, Edge, Edge]
    affine: Affine
    dtype: Literal["int16", "uint16", "int32", "float32", "float64"]

    def __post_init__(self) -> None:
        if not all(math.isfinite(number) for row in self.affine for number in row):
            raise ValueError(f"expected a finite affine, got {self.affine}")
        if self.volume_bytes > MAX_VOLUME_BYTES:
            raise ValueError(f"expected volumes of at most {MAX_VOLUME_BYTES} bytes, got {self.volume_bytes}")

    @property
    def volume_bytes(self) -> int:
        """Size of one volume's buffer in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Volume(_Message, frozen=True, kw_only=True, tag="volume", tag_field="kind"):
    """One volume; its voxels are the second frame, C order, little endian."""

    index: Count
    acquired_s: float
    """When its acquisition ended, in seconds since the run's start, by the scanner's clock."""
    crc32: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None
    """Of this header without it, and the voxels (see :func:`sealed`); None: nothing is checked."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.acquired_s):
            raise ValueError(f"expected a finite acquisition time, got {self.acquired_s}")


class Marker(_Message, frozen=True, kw_only=True, tag="marker", tag_field="kind"):
    """What presentation software put on screen at ``onset_volume``; the picture (PNG) is the second frame."""

    onset_volume: Count
    name: Annotated[str, msgspec.Meta(max_length=200)]


class RunEnd(_Message, frozen=True, kw_only=True, tag="run_end", tag_field="kind"):
    """No more volumes will come."""

    reason: Literal["complete", "aborted"]


class RunAccepted(_Message, frozen=True, kw_only=True, tag="run_accepted", tag_field="kind"):
    """The runtime takes the run; it already holds the volumes in ``held`` (half-open ranges that rise)."""

    held: list[tuple[Count, Count]]

    def __post_init__(self) -> None:
        # So that a scanner never counts more volumes than a run can have.
        if any(after < before for before, after in pairwise(chain.from_iterable(self.held))):
            raise ValueError(f"expected rising ranges of volumes, got {self.held[:8]}")


class Ack(_Message, frozen=True, kw_only=True, tag="ack", tag_field="kind"):
    """The volume is in the journal."""

    index: Count


class MarkerAck(_Message, frozen=True, kw_only=True, tag="marker_ack", tag_field="kind"):
    """The marker is recorded."""

    onset_volume: Count


class RunClosed(_Message, frozen=True, kw_only=True, tag="run_closed", tag_field="kind"):
    """The run is complete on the runtime's side; the scanner may go."""


class Refused(_Message, frozen=True, kw_only=True, tag="refused", tag_field="kind"):
    """A message was not taken. ``code`` is a short word for programs, ``message`` is for people."""

    run_id: str  # a refused message may carry an id of any form, or none
    code: str
    message: str
    index: int | None = None


ToRuntime = RunStart | Volume | Marker | RunEnd
ToScanner = RunAccepted | Ack | MarkerAck | RunClosed | Refused

_encoder = msgspec.msgpack.Encoder()
_to_runtime: msgspec.msgpack.Decoder[ToRuntime] = msgspec.msgpack.Decoder(ToRuntime)
_to_scanner: msgspec.msgpack.Decoder[ToScanner] = msgspec.msgpack.Decoder(ToScanner)


class _Version(msgspec.Struct):
    version: int = 0


_version = msgspec.msgpack.Decoder(_Version)


def encode(message: ToRuntime | ToScanner) -> bytes:
    """The header frame of a message."""
    return _encoder.encode(message)


def decode_to_runtime(header: bytes) -> ToRuntime:
    """Read a header that a scanner sent.

    :raises WireError: codes ``header`` (not a message of this format) and ``version``.
    """
    return _decode(_to_runtime, header, MAX_HEADER_BYTES, "scanner message")


def decode_to_scanner(header: bytes) -> ToScanner:
    """Read a header that the runtime sent; raises as :func:`decode_to_runtime`."""
    return _decode(_to_scanner, header, MAX_REPLY_BYTES, "runtime reply")


def sealed(message: Volume, buffer: bytes | memoryview) -> Volume:
    """The message with its checksum, so that a byte that changes on the way is noticed."""
    return msgspec.structs.replace(message, crc32=_checksum(message, buffer))


def check_seal(message: Volume, buffer: bytes | memoryview) -> None:
    """See that header and voxels are as they were sent, where the message has a checksum.

    :raises WireError: code ``checksum``.
    """
    if message.crc32 is not None and message.crc32 != (found := _checksum(message, buffer)):
        raise WireError(
            "checksum",
            f"expected a volume whose CRC-32 is {message.crc32:08x}, got one of {found:08x}: it was changed "
            "on the way; send it again",
        )


def _checksum(message: Volume, buffer: bytes | memoryview) -> int:
    return zlib.crc32(buffer, zlib.crc32(encode(msgspec.structs.replace(message, crc32=None))))


def volume_array(start: RunStart, buffer: bytes | memoryview) -> NDArray[np.generic]:
    """The voxels of a volume, ``start.shape``, without a copy.

    :raises WireError: code ``size`` when the buffer is not exactly one volume of the run.
    """
    n_bytes = memoryview(buffer).nbytes
    if n_bytes != start.volume_bytes:
        raise WireError(
            "size",
            f"expected {start.volume_bytes} bytes for a volume {start.shape} of {start.dtype}, "
            f"got {n_bytes}; send the raw C-order buffer of the shape and dtype in the run's start",
        )
    return np.frombuffer(buffer, dtype=np.dtype(start.dtype).newbyteorder("<")).reshape(start.shape)


def _decode(decoder: msgspec.msgpack.Decoder[T], header: bytes, limit: int, what: str) -> T:
    if len(header) > limit:
        raise WireError("header", f"expected a {what} of at most {limit} bytes, got {len(header)}")
    try:
        version = _version.decode(header).version
        if version == WIRE_VERSION:
            return decoder.decode(header)
    # Beside its own errors msgspec lets through what its string and recursion checks raise.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError("header", f"expected a {what} of wire version {WIRE_VERSION}: {error}") from error
    raise WireError(
        "version", f"expected wire version {WIRE_VERSION}, got {version}; run the same release on both sides"
    )
