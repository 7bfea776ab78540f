"""Reads the design of a run: which image appeared at which volume."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nsd.errors import BadFile, require_file

N_DESIGN_ROWS = 225
"""Volumes of a run with a design row; the series has one more volume, which is dropped."""

N_IMAGES = 73_000
"""Number of images; ids in files are 1..73000, indices in this code 0..72999."""


class Trial(NamedTuple):
    """One presentation of 3 s: its onset volume and its image (0-based)."""

    onset_volume: int
    image: int


def read_design(path: Path) -> npt.NDArray[np.int64]:
    """Read a design, ``int64[225]``: for each volume the 1-based 73k id that appears there, or 0.

    :raises MissingFile: when the file does not exist
    :raises BadFile: when there is not one integer per row, not 225 rows, or an id outside 0..73000
    """
    require_file(path, "the design of a run (225 integers, one per row)")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    design = np.array([_design_value(path, row, text) for row, text in enumerate(lines)], dtype=np.int64)
    if design.size != N_DESIGN_ROWS:
        raise BadFile(path, f"{N_DESIGN_ROWS} rows, one for each volume but the last", f"{design.size} rows")
    return design


def _design_value(path: Path, row: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise BadFile(path, "one integer per row", f"{text[:40]!r} in row {row}") from None
    if not 0 <= value <= N_IMAGES:
        raise BadFile(path, f"0 or an image id from 1 to {N_IMAGES}", f"{value} in row {row}")
    return value


def trials(design: npt.NDArray[np.int64]) -> list[Trial]:
    """List the presentations of a design in order, with 0-based image indices."""
    return [Trial(int(row), int(design[row]) - 1) for row in np.flatnonzero(design)]
