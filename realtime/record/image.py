"""Reads pictures from outside as arrays."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime.errors import WireError
from realtime.record.png import plain_png


def decode_png(data: bytes | memoryview) -> NDArray[np.uint8]:
    """RGB ``[H, W, 3]``; alpha is left out, and an orientation in the metadata is not applied.

    :raises WireError: code ``picture``
    """
    try:
        image = cv2.imdecode(np.frombuffer(plain_png(data), np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise WireError("picture", f"the marker's PNG of {len(data)} bytes cannot be decoded; it is damaged")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
