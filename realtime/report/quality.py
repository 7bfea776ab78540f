"""Motion and quality of a run: figures for ``summary.json``, plots for the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import msgspec
import numpy as np
from numpy.typing import NDArray

WIDTH_PX, HEIGHT_PX, LEFT_PX = 900, 110, 48
_MARGIN_PX = 8

_PANELS: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("Head position, mm", 1.0, ("trans_x", "trans_y", "trans_z")),
    ("Head rotation, °", 180 / math.pi, ("rot_x", "rot_y", "rot_z")),
    ("Framewise displacement, mm", 1.0, ("framewise_displacement",)),
    ("DVARS, in the scanner's units", 1.0, ("dvars",)),
    ("tSNR of the region so far", 1.0, ("tsnr",)),
)
"""Title, factor from the table's unit, and columns of the confounds table."""


class QualitySummary(msgspec.Struct, frozen=True, kw_only=True):
    """Over the volumes of a run; None where no volume has a value."""

    framewise_displacement_mean_mm: float | None
    framewise_displacement_max_mm: float | None
    dvars_median: float | None
    tsnr: float | None
    """Median over the region at the end of the run."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot; x and y in px from its upper left corner."""

    title: str
    lines: list[tuple[str, list[str]]]
    """Column, and its stretches without a gap as points of SVG."""
    low: float
    high: float


def summarize_quality(columns: Mapping[str, NDArray[np.float64]]) -> QualitySummary | None:
    """The figures of a confounds table; None for a run that has none."""
    if not columns:
        return None
    known = {name: values[np.isfinite(values)] for name, values in columns.items()}
    fd_mm, dvars, tsnr = (known[name] for name in ("framewise_displacement", "dvars", "tsnr"))
    return QualitySummary(
        framewise_displacement_mean_mm=float(fd_mm.mean()) if fd_mm.size else None,
        framewise_displacement_max_mm=float(fd_mm.max()) if fd_mm.size else None,
        dvars_median=float(np.median(dvars)) if dvars.size else None,
        tsnr=float(tsnr[-1]) if tsnr.size else None,
    )


def in_words(quality: QualitySummary) -> str:
    """The figures for a terminal."""
    moved, most = quality.framewise_displacement_mean_mm, quality.framewise_displacement_max_mm
    known = [f"tSNR {quality.tsnr:.0f}"] if quality.tsnr is not None else []
    if quality.dvars_median is not None:
        known.append(f"DVARS {quality.dvars_median:.1f}")
    if moved is not None and most is not None:
        known.append(f"framewise displacement {moved:.2f} mm on average, {most:.2f} mm at most")
    return ", ".join(known) or "no volume was good enough to tell"


def panels(columns: Mapping[str, NDArray[np.float64]], planned: int) -> list[Panel]:
    """The plots that a run has values for."""
    found = []
    for title, factor, names in _PANELS:
        lines = {name: factor * columns[name] for name in names if name in columns}
        values = np.concatenate([*lines.values(), np.empty(0)])
        values = values[np.isfinite(values)]
        if values.size:
            low, high = float(min(values.min(), 0.0)), float(max(values.max(), 0.0))
            drawn = [(name, _stretches(line, low, high, planned)) for name, line in lines.items()]
            found.append(Panel(title=title, lines=drawn, low=low, high=high))
    return found


def _stretches(values: NDArray[np.float64], low: float, high: float, planned: int) -> list[str]:
    def point(volume: int) -> str:
        x = LEFT_PX + volume / max(1, planned - 1) * (WIDTH_PX - LEFT_PX - _MARGIN_PX)
        y = _MARGIN_PX + (HEIGHT_PX - 2 * _MARGIN_PX) * (high - values[volume]) / ((high - low) or 1.0)
        return f"{x:.1f},{y:.1f}"

    whole: Sequence[int] = np.flatnonzero(np.isfinite(values)).tolist()
    runs = groupby(enumerate(whole), key=lambda each: each[1] - each[0])
    return [" ".join(point(volume) for _, volume in run) for _, run in runs]
