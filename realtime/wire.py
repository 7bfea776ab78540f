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
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from realtime.errors import WireError

WIRE_VERSION = 1
MAX_HEADER_BYTES = 16_384
MAX_VOLUME_BYTES = 256 * 2**20
MAX_PICTURE_BYTES = 4 * 2**20
DTYPES = ("int16", "uint16", "int32", "float32", "float64")

RunId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,95}$")]
Count = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
Edge = Annotated[int, msgspec.Meta(ge=1, le=1_024)]
Row4 = tuple[float, float, float, float]


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int = WIRE_VERSION
    run_id: RunId


class RunStart(_Message, tag="run_start", tag_field="kind"):
    """A run begins: who is scanned, and what every volume of the run will look like."""

    subject: Annotated[int, msgspec.Meta(ge=1, le=99_999)]
    tr_s: Annotated[float, msgspec.Meta(gt=0, le=60)]
    n_volumes: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    shape: tuple[Edge, Edge, Edge]
    affine: tuple[Row4, Row4, Row4, Row4]
    dtype: Literal["int16", "uint16", "int32", "float32", "float64"]

    @property
    def volume_bytes(self) -> int:
        """Size of one volume's buffer in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Volume(_Message, tag="volume", tag_field="kind"):
    """One volume; its voxels are the second frame, C order, little endian."""

    index: Count
    acquired_s: float
    """When its acquisition ended, in seconds since the run's start, by the scanner's clock."""


class Marker(_Message, tag="marker", tag_field="kind"):
    """What presentation software put on screen at ``onset_volume``; the picture (PNG) is the second frame."""

    onset_volume: Count
    name: Annotated[str, msgspec.Meta(max_length=200)]


class RunEnd(_Message, tag="run_end", tag_field="kind"):
    """No more volumes will come."""

    reason: Literal["complete", "aborted"]


class RunAccepted(_Message, tag="run_accepted", tag_field="kind"):
    """The runtime takes the run; it already holds the volumes in ``held`` (half-open ranges)."""

    held: list[tuple[int, int]]


class Ack(_Message, tag="ack", tag_field="kind"):
    """The volume is in the journal."""

    index: int


class MarkerAck(_Message, tag="marker_ack", tag_field="kind"):
    """The marker is recorded."""

    onset_volume: int


class RunClosed(_Message, tag="run_closed", tag_field="kind"):
    """The run is complete on the runtime's side; the scanner may go."""


class Refused(_Message, tag="refused", tag_field="kind"):
    """A message was not taken. ``code`` is a short word for programs, ``message`` is for people."""

    run_id: str  # type: ignore[assignment]  # a refused message may carry an id of any form, or none
    code: str
    message: str
    index: int | None = None


ToRuntime = RunStart | Volume | Marker | RunEnd
ToScanner = RunAccepted | Ack | MarkerAck | RunClosed | Refused

_encoder = msgspec.msgpack.Encoder()
_to_runtime = msgspec.msgpack.Decoder(ToRuntime)
_to_scanner = msgspec.msgpack.Decoder(ToScanner)


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
    _check_header(header)
    try:
        return _to_runtime.decode(header)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise WireError("header", f"expected a scanner message of wire version {WIRE_VERSION}: {error}") from error


def decode_to_scanner(header: bytes) -> ToScanner:
    """Read a header that the runtime sent; raises as :func:`decode_to_runtime`."""
    _check_header(header)
    try:
        return _to_scanner.decode(header)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise WireError("header", f"expected a runtime reply of wire version {WIRE_VERSION}: {error}") from error


def volume_array(start: RunStart, buffer: bytes | memoryview) -> NDArray[np.generic]:
    """The voxels of a volume, ``start.shape``, without a copy.

    :raises WireError: code ``size`` when the buffer is not exactly one volume of the run.
    """
    if len(buffer) != start.volume_bytes:
        raise WireError(
            "size",
            f"expected {start.volume_bytes} bytes for a volume {start.shape} of {start.dtype}, "
            f"got {len(buffer)}; send the raw C-order buffer of the shape and dtype in the run's start",
        )
    return np.frombuffer(buffer, dtype=np.dtype(start.dtype).newbyteorder("<")).reshape(start.shape)


def _check_header(header: bytes) -> None:
    if len(header) > MAX_HEADER_BYTES:
        raise WireError("header", f"expected a header of at most {MAX_HEADER_BYTES} bytes, got {len(header)}")
    try:
        version = _version.decode(header).version
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise WireError("header", f"expected a msgpack map with a version and a kind: {error}") from error
    if version != WIRE_VERSION:
        raise WireError(
            "version",
            f"expected wire version {WIRE_VERSION}, got {version}; run the same release on both sides",
        )
