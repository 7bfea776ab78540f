"""The parity report in a bundle: ``parity.json`` for programs, ``parity.html`` for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined

from export.parity.differences import Difference
from realtime.report.identification import Identification, Interval

JSON_FILE, PAGE_FILE = "parity.json", "parity.html"
_TEMPLATES = Environment(
    loader=PackageLoader("export.parity", ""),
    autoescape=True,
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)


class GraphParity(msgspec.Struct, frozen=True, kw_only=True):
    """The largest difference of a step of a graph from what it is compared with, over the graph's cases."""

    step: str
    against: str
    what: str
    largest: float
    """As a number; for pictures, in levels of 255."""
    relative: float
    """As a share of the largest number; for pictures, beyond the one level that rounding can change."""
    limit: float


class DecodeParity(msgspec.Struct, frozen=True, kw_only=True):
    """The difference of whole decodes from those of torch and diffusers with unmerged LoRA."""

    way: str
    runs_on: str | None = None
    """The engine; None when it cannot run here."""
    reason: str = ""
    """Why it cannot run here."""
    psnr_db: float | None = None
    """PSNR of the worst picture."""
    largest_levels: int | None = None
    """Largest difference in a picture, in levels of 255."""
    relative: float | None = None
    """The same, as a share of the largest number."""
    identification: dict[str, Identification] = {}
    """Identification by features; empty when it was not measured."""


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """``parity.json``."""

    form: str
    windows: str
    """Description of the windows that were decoded."""
    samplers: list[str]
    seed: int
    identification: str
    """What identification was measured on, or why it was not measured."""
    limits: dict[str, float]
    graphs: list[GraphParity]
    decodes: list[DecodeParity]


def rows(step: str, against: str, differences: Mapping[str, Difference], limit: float) -> list[GraphParity]:
    """Rows of the report for one comparison."""
    return [
        GraphParity(
            step=step,
            against=against,
            what=what,
            largest=found.largest,
            relative=found.relative,
            limit=limit,
        )
        for what, found in differences.items()
    ]


def write(folder: Path, parity: Parity, title: str) -> None:
    """Write both files."""
    encoded = msgspec.json.format(msgspec.json.encode(parity), indent=2)
    (folder / JSON_FILE).write_bytes(encoded + b"\n")
    (folder / PAGE_FILE).write_text(page(parity, title), encoding="utf-8")


def page(parity: Parity, title: str) -> str:
    """The report as one HTML file that loads nothing else."""
    features = sorted({name for row in parity.decodes for name in row.identification})
    return _TEMPLATES.get_template("parity.html.jinja").render(
        title=title,
        parity=parity,
        identified_in=[f"{name}, {way}" for name in features for way in ("by decode", "by picture")],
        graphs=[_graph_cells(row) for row in parity.graphs],
        decodes=[_decode_cells(row, features) for row in parity.decodes],
    )


def _graph_cells(row: GraphParity) -> tuple[str, ...]:
    figures = f"{row.largest:.2g}", f"{row.relative:.2g}", f"{row.limit:g}"
    return row.step, row.against, row.what, *figures


def _decode_cells(row: DecodeParity, features: list[str]) -> tuple[str, ...]:
    if row.runs_on is None:
        return row.way, f"not here: {row.reason}", "", "", "", *("" for _ in 2 * features)
    figures = (row.psnr_db, row.largest_levels, row.relative)
    return (
        row.way,
        row.runs_on,
        *("" if figure is None else f"{figure:.3g}" for figure in figures),
        *(cell for name in features for cell in _directions(row.identification.get(name))),
    )


def _directions(found: Identification | None) -> tuple[str, str]:
    """An identification by decode, and by picture."""
    return ("", "") if found is None else (_interval(found), _interval(found.by_picture))


def _interval(found: Identification | Interval | None) -> str:
    if found is None or found.value is None or found.low is None or found.high is None:
        return ""
    return f"{100 * found.value:.2f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"
