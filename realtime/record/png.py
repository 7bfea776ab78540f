"""Reads PNGs from outside, after checking what their headers state."""

from __future__ import annotations

import struct

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime.errors import WireError

MAX_EDGE_PX = 2048
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_START = _SIGNATURE + b"\x00\x00\x00\rIHDR"
_AROUND_CHUNK = 12
"""Length, name and checksum."""


def check_png(data: bytes) -> bytes:
    """Return the same bytes if they are a PNG of an allowed size that can be decoded.

    :raises WireError: code ``picture``
    """
    decode_png(data)
    return data


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """RGB ``[H, W, 3]``. Sizes in the headers are checked before memory is allocated for them.

    :raises WireError: code ``picture``
    """
    if not data.startswith(_PNG_START) or len(data) < len(_PNG_START) + 8:
        raise WireError("picture", "expected a PNG with the marker, got something else or nothing")
    width, height = struct.unpack_from(">II", data, len(_PNG_START))
    if not (0 < width <= MAX_EDGE_PX and 0 < height <= MAX_EDGE_PX):
        raise WireError(
            "picture",
            f"expected a picture of at most {MAX_EDGE_PX} px a side, got {width} x {height}; "
            "send a smaller one",
        )
    _check_chunks(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise WireError("picture", f"the marker's PNG of {len(data)} bytes cannot be decoded; it is damaged")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _check_chunks(data: bytes) -> None:
    """Check that every chunk is complete: OpenCV allocates a chunk's memory once it has read its length."""
    at, kind = len(_SIGNATURE), b""
    while at < len(data) and kind != b"IEND":
        kind = data[at + 4 : at + 8]
        at += _AROUND_CHUNK + int.from_bytes(data[at : at + 4], "big")
    if at > len(data):
        raise WireError(
            "picture", f"the marker's PNG is damaged: expected {at} bytes by its chunks, got {len(data)}"
        )
