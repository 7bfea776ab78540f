"""Pictures that come from outside: looked at before they are believed."""

from __future__ import annotations

import struct

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime.errors import WireError

MAX_EDGE_PX = 2048
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


def check_png(data: bytes) -> bytes:
    """The same bytes, once they are known to be a PNG of bearable size that can be decoded.

    :raises WireError: code ``picture``.
    """
    decode_png(data)
    return data


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """RGB ``[H, W, 3]``. The size is read from the header, before any memory is taken for the pixels.

    :raises WireError: code ``picture``.
    """
    if not data.startswith(_PNG_START) or len(data) < len(_PNG_START) + 8:
        raise WireError("picture", "expected a PNG with the marker, got something else or nothing")
    width, height = struct.unpack_from(">II", data, len(_PNG_START))
    if not (0 < width <= MAX_EDGE_PX and 0 < height <= MAX_EDGE_PX):
        raise WireError(
            "picture", f"expected a picture of at most {MAX_EDGE_PX} px a side, got {width} x {height}"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise WireError("picture", f"the marker's PNG of {len(data)} bytes cannot be decoded; it is damaged")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
