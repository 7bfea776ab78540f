"""The picture of held-out trials: what was shown and, below it, what each way of decoding made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from train.model.sample import Pictures

_TEXT_SHARE = 0.22
"""Height of the rows' names, of a picture's."""


def write_grid(path: Path, rows: Mapping[str, Pictures]) -> None:
    """Write the trials in two bands, each with a named row for each kind of pictures ``[n, H, W, 3]``.

    All are brought to the size of the first kind.
    """
    first = next(iter(rows.values()))
    n_columns, (height, width) = (len(first) + 1) // 2, first.shape[1:3]
    gap = max(2, height // 32)
    font = ImageFont.load_default(max(10, round(_TEXT_SHARE * height)))
    margin = round(max(font.getlength(name) for name in rows)) + 4 * gap
    band_height = len(rows) * (height + gap) + 4 * gap
    size = (margin + n_columns * (width + gap), 2 * band_height - 4 * gap)
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    for band in range(2):
        for row, (name, pictures) in enumerate(rows.items()):
            top = band * band_height + row * (height + gap)
            draw.text((margin - 2 * gap, top + height // 2), name, fill="black", font=font, anchor="rm")
            for column, picture in enumerate(pictures[band * n_columns : (band + 1) * n_columns]):
                grid.paste(_resized(picture, width, height), (margin + column * (width + gap), top))
    grid.save(path, format="PNG")


def _resized(picture: Pictures, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.BOX)
