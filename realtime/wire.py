"""Messages between scanner and runtime, and their encoding. Pure.

A scanner (ZeroMQ DEALER) connects to the runtime (ROUTER). Every message has two frames: a msgpack header
with kind and version, and a raw C-order buffer, which is empty for kinds without one.

    scanner                         runtime
    RunStart            ──►
                        ◄──         RunAccepted(held)      or Refused
    Marker + PNG        ──►
                        ◄──         MarkerAck
    Volume + voxels     ──►
                        ◄──         Ack                    once the volume is in the journal
    RunEnd              ──►
                        ◄──         RunClosed

The sender keeps every volume until it is acknowledged. If no reply comes, it sends RunStart again; ``held``
then lists the volumes that the runtime has, and the sender repeats the others. So a crash on either side
loses nothing.
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
"""Enough for ``held`` of the longest run with every second volume missing."""
MAX_VOLUME_BYTES = 256 * 2**20
MAX_PICTURE_BYTES = 4 * 2**20
FARTHEST_MM = 1e5
"""From the scanner's centre."""
DTYPES = ("int16", "uint16", "int32", "float32", "float64")

RunId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,95}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
# The drift basis grows with the square of the length. 10 000 volumes at 4/3 s take 3.7 hours.
RunLength = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Secret = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{16,64}\Z")]
Edge = Annotated[int, msgspec.Meta(ge=1, le=1_024)]
Row4 = tuple[float, float, float, float]
Affine = tuple[Row4, Row4, Row4, Row4]
"""Voxel indices to RAS+ mm: x increases to the right, y to the front, z upwards."""

T = TypeVar("T")


def is_invertible(affine: NDArray[np.float64]) -> bool:
    """Whether an affine [4, 4] gives each voxel a place of its own, within reach."""
    is_near = bool((np.abs(affine) <= FARTHEST_MM).all())
    return is_near and bool(np.linalg.matrix_rank(affine[:3, :3]) == 3)


def _check_affine(affine: Affine) -> None:
    if not all(math.isfinite(number) for row in affine for number in row):
        raise ValueError(f"expected a finite affine, got {affine}")
    if not is_invertible(np.array(affine)):
        raise ValueError(f"expected an affine in mm that can be inverted, got {affine}")


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all messages. Values are validated when a header is decoded, not when a message is created."""

    version: int = WIRE_VERSION
    run_id: RunId


class RunStart(_Message, frozen=True, kw_only=True, tag="run_start", tag_field="kind"):
    """A run begins; describes the subject and the format of all volumes."""

    subject: Annotated[int, msgspec.Meta(ge=1, le=99_999)]
    tr_s: Annotated[float, msgspec.Meta(gt=0, le=60)]
    n_volumes: RunLength
    shape: tuple[Edge, Edge, Edge]
    affine: Affine
    dtype: Literal["int16", "uint16", "int32", "float32", "float64"]
    secret: Secret | None = None
    """Known to the process that sends the run only; tells it from others with the same key."""

    def __post_init__(self) -> None:
        _check_affine(self.affine)
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
    """End of its acquisition, in seconds since the run's start, by the scanner's clock."""
    crc32: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None
    """CRC-32 of the header without this field and of the voxels; ZeroMQ scanners must send it."""
    affine: Affine | msgspec.UnsetType = msgspec.UNSET
    """Of this volume, where the scanner moved its slices within the run (prospective motion correction)."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.acquired_s):
            raise ValueError(f"expected a finite acquisition time, got {self.acquired_s}")
        if self.affine is not msgspec.UNSET:
            _check_affine(self.affine)


class Marker(_Message, frozen=True, kw_only=True, tag="marker", tag_field="kind"):
    """A picture that appeared on screen at ``onset_volume``; the picture (PNG) is the second frame.

    It is empty in journals where only the picture's name is known, of a marker that came over LSL.
    """

    onset_volume: Count
    name: Annotated[str, msgspec.Meta(max_length=200)]
    triggers: Count | msgspec.UnsetType = msgspec.UNSET
    """How many of the run's trigger pulses its sender had counted when it sent this."""


class RunEnd(_Message, frozen=True, kw_only=True, tag="run_end", tag_field="kind"):
    """The run is over; no more volumes follow."""

    reason: Literal["complete", "aborted", "given_up"]
    """``given_up``: by the recorder, because another run began."""


class RunAccepted(_Message, frozen=True, kw_only=True, tag="run_accepted", tag_field="kind"):
    """The runtime accepts the run and already has the volumes in ``held`` (increasing half-open ranges)."""

    held: list[tuple[Count, Count]]

    def __post_init__(self) -> None:
        # Overlapping ranges could count more volumes than a run can have.
        if any(after < before for before, after in pairwise(chain.from_iterable(self.held))):
            raise ValueError(f"expected rising ranges of volumes, got {self.held[:8]}")


class Ack(_Message, frozen=True, kw_only=True, tag="ack", tag_field="kind"):
    """The volume is in the journal."""

    index: Count


class MarkerAck(_Message, frozen=True, kw_only=True, tag="marker_ack", tag_field="kind"):
    """The marker is recorded."""

    onset_volume: Count


class RunClosed(_Message, frozen=True, kw_only=True, tag="run_closed", tag_field="kind"):
    """The runtime has closed the run; the scanner may disconnect."""


class Refused(_Message, frozen=True, kw_only=True, tag="refused", tag_field="kind"):
    """A message was refused. ``code`` is a short word for programs, ``message`` a text for people."""

    run_id: str  # any text, because a refused message may contain an invalid id
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
    """Encode the header frame of a message."""
    return _encoder.encode(message)


def decode_to_runtime(header: bytes) -> ToRuntime:
    """Decode a header sent by a scanner.

    :raises WireError: codes ``header`` (invalid message) and ``version``
    """
    return _decode(_to_runtime, header, MAX_HEADER_BYTES, "scanner message")


def decode_to_scanner(header: bytes) -> ToScanner:
    """Decode a header sent by the runtime; raises like :func:`decode_to_runtime`."""
    return _decode(_to_scanner, header, MAX_REPLY_BYTES, "runtime reply")


def with_checksum(message: Volume, buffer: bytes | memoryview) -> Volume:
    """Return the message with its checksum, which detects changes in transit."""
    return msgspec.structs.replace(message, crc32=_checksum(message, buffer))


def verify_checksum(message: Volume, buffer: bytes | memoryview) -> None:
    """Verify the checksum of a message, if it has one.

    :raises WireError: code ``checksum``, when header or voxels were changed
    """
    if message.crc32 is not None and message.crc32 != (found := _checksum(message, buffer)):
        raise WireError(
            "checksum",
            f"expected a volume with CRC-32 {message.crc32:08x}, got {found:08x}: it was changed in transit; "
            "send it again",
        )


def _checksum(message: Volume, buffer: bytes | memoryview) -> int:
    return zlib.crc32(buffer, zlib.crc32(encode(msgspec.structs.replace(message, crc32=None))))


def volume_array(start: RunStart, buffer: bytes | memoryview) -> NDArray[np.generic]:
    """View a buffer as the voxels of a volume, shape ``start.shape``.

    :raises WireError: code ``size``, when the buffer is not exactly one volume of the run
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
    # msgspec also lets errors of its string and recursion checks through.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError("header", f"expected a {what} of wire version {WIRE_VERSION}: {error}") from error
    raise WireError(
        "version", f"expected wire version {WIRE_VERSION}, got {version}; run the same release on both sides"
    )
