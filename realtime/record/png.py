"""Checks PNGs from outside; :mod:`realtime.record.image` reads them.

    PNG     = signature, chunk*: IHDR first, then others (PLTE is the palette, IDAT the pixels), IEND last
    chunk   = length u32, kind, content, CRC-32 u32 of kind and content; numbers are big endian

The pixels are compressed, so that a small file can become any size: what OpenCV gets was inflated here
first, up to the size that the header states, and holds no chunk but these four.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from realtime.errors import WireError
from realtime.wire import MAX_PICTURE_BYTES

MAX_EDGE_PX = 2048
_MAX_CHUNKS = 4096
"""Encoders fill chunks of 8 KiB or more; a million empty ones would take seconds to look through."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_START = _SIGNATURE + b"\x00\x00\x00\rIHDR"
_HEADER = struct.Struct(">IIBBBBB")
_AROUND_CHUNK = 12
"""Length, kind and checksum."""
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type: grey, RGB, palette, grey with alpha, RGB with alpha."""
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PALETTE = 3
_PLAIN = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row, columns and rows apart, of each pass of an interlaced picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    width: int
    height: int
    depth: int
    colour_type: int
    is_interlaced: bool

    def n_inflated_bytes(self) -> int:
        """Bytes of all rows, each with the byte that names its filter."""
        bits = self.depth * _CHANNELS[self.colour_type]
        n_bytes = 0
        for column, row, columns_apart, rows_apart in _ADAM7 if self.is_interlaced else _PLAIN:
            n_columns = -(-(self.width - column) // columns_apart)
            n_rows = -(-(self.height - row) // rows_apart)
            if n_columns > 0 and n_rows > 0:
                n_bytes += n_rows * (1 + (n_columns * bits + 7) // 8)
        return n_bytes


@dataclass(frozen=True, slots=True)
class _Chunk:
    kind: bytes
    content: memoryview
    raw: memoryview
    """With what is around the content."""


def check_png_structure(data: bytes | memoryview) -> None:
    """Check that this is a whole PNG of an allowed size, without inflating it: that takes a millisecond.

    Its pixels may be damaged nevertheless: reading it tells.

    :raises WireError: code ``picture``
    """
    if len(data) > MAX_PICTURE_BYTES:
        raise WireError(
            "picture", f"expected a picture of at most {MAX_PICTURE_BYTES} bytes, got {len(data)} bytes"
        )
    _read(data)


def plain_png(data: bytes | memoryview) -> bytes:
    """The same picture with nothing but header, palette and pixels, which were inflated once to check them.

    :raises WireError: code ``picture``
    """
    header, chunks = _read(data)
    _check_inflated(b"".join(chunk.content for chunk in chunks if chunk.kind == b"IDAT"), header)
    return b"".join((_SIGNATURE, *(chunk.raw for chunk in chunks if chunk.kind in _CRITICAL)))


def _read(data: bytes | memoryview) -> tuple[_Header, list[_Chunk]]:
    """Header and chunks of a PNG, all but the pixels checked."""
    if bytes(data[: len(_START)]) != _START or len(data) < len(_START) + _HEADER.size:
        raise WireError("picture", "expected a PNG with the marker, got something else or nothing")
    header = _header(*_HEADER.unpack_from(data, len(_START)))
    chunks = list(_chunks(memoryview(data)))
    for chunk in chunks:
        if zlib.crc32(chunk.raw[4:-4]) != int.from_bytes(chunk.raw[-4:], "big"):
            raise _damaged(f"the checksum of a chunk {_listed([chunk.kind])} does not fit")
    kinds = [chunk.kind for chunk in chunks]
    # A kind with a small first letter may be ignored.
    if kinds.count(b"IHDR") != 1 or any(kind not in _CRITICAL and not kind[0] & 0x20 for kind in kinds):
        raise _damaged(f"expected a header, pixels and an end, got {_listed(kinds)}")
    n_pixels = kinds.count(b"IDAT")
    first = kinds.index(b"IDAT") if n_pixels else 0
    if not n_pixels or kinds[first : first + n_pixels] != [b"IDAT"] * n_pixels:
        raise _damaged(f"expected pixels in chunks that follow each other, got {_listed(kinds)}")
    if kinds.count(b"PLTE") > 1 or (header.colour_type == _PALETTE and b"PLTE" not in kinds[:first]):
        raise _damaged(f"expected one palette before the pixels, got {_listed(kinds)}")
    return header, chunks


def _chunks(data: memoryview) -> Iterator[_Chunk]:
    """The chunks up to IEND; what follows is no part of the picture."""
    at = len(_SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        kind = bytes(data[at + 4 : at + 8])
        end = at + _AROUND_CHUNK + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            raise _damaged(f"expected {end} bytes by its chunks, got {len(data)}")
        yield _Chunk(kind, data[at + 8 : end - 4], data[at:end])
        if kind == b"IEND":
            return
        at = end
    raise _damaged(f"expected at most {_MAX_CHUNKS} chunks, got more")


def _header(
    width: int, height: int, depth: int, colour_type: int, compression: int, filters: int, interlacing: int
) -> _Header:
    if not (0 < width <= MAX_EDGE_PX and 0 < height <= MAX_EDGE_PX):
        raise WireError(
            "picture",
            f"expected a picture of at most {MAX_EDGE_PX} px a side, got {width} x {height}; "
            "send a smaller one",
        )
    if depth not in _DEPTHS.get(colour_type, ()) or (compression, filters) != (0, 0) or interlacing > 1:
        raise _damaged(
            f"got colour type {colour_type} with {depth} bits, compression {compression}, filters {filters}, "
            f"interlacing {interlacing}, which PNG does not have"
        )
    return _Header(
        width=width, height=height, depth=depth, colour_type=colour_type, is_interlaced=bool(interlacing)
    )


def _check_inflated(compressed: bytes, header: _Header) -> None:
    """Inflate the pixels as far as the header says that they go, and no further."""
    n_expected = header.n_inflated_bytes()
    inflate = zlib.decompressobj()
    try:
        n_inflated = len(inflate.decompress(compressed, n_expected + 1))
    except zlib.error as error:
        raise _damaged(f"its pixels cannot be inflated: {error}") from error
    if n_inflated > n_expected:
        raise _damaged(f"its pixels inflate to more than the {n_expected} bytes of its header")
    if n_inflated < n_expected or not inflate.eof:
        raise _damaged(f"its pixels end after {n_inflated} of {n_expected} bytes")


def _listed(kinds: list[bytes]) -> str:
    names = [kind.decode("ascii", "backslashreplace") for kind in kinds]
    return ", ".join(names if len(names) <= 8 else [*names[:4], "…", *names[-4:]]) or "none"


def _damaged(what: str) -> WireError:
    return WireError("picture", f"the marker's PNG is damaged: {what}")
