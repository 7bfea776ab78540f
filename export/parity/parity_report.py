"""The parity report in a bundle: ``parity.json`` for programs, ``parity.html`` for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template

import msgspec

from export.parity.limits import Difference
from realtime.report.identification import Identification

JSON_FILE, PAGE_FILE = "parity.json", "parity.html"


class GraphParity(msgspec.Struct, frozen=True, kw_only=True):
    """How far a step of a graph is from what it is compared with, at most over the graph's cases."""

    step: str
    against: str
    what: str
    largest: float
    """As a number; of pictures, in levels of 255."""
    relative: float
    """As a share of the largest number; of pictures, beyond the one level that rounding can flip."""
    limit: float


class DecodeParity(msgspec.Struct, frozen=True, kw_only=True):
    """How far whole decodes by one way are from those of torch and diffusers, before any merge."""

    way: str
    runs_on: str | None = None
    """What ran it; None where it cannot run here."""
    reason: str = ""
    """Why it cannot."""
    psnr_db: float | None = None
    """Of the worst picture."""
    largest_levels: int | None = None
    """Largest difference of a number of a picture, of 255."""
    relative: float | None = None
    """The same as a share of the largest number."""
    identification: dict[str, Identification] = {}
    """By features; empty where it was not measured."""


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """``parity.json``."""

    form: str
    windows: str
    """What was decoded."""
    samplers: list[str]
    seed: int
    identification: str
    """What is identified among what, or why it was not measured."""
    limits: dict[str, float]
    graphs: list[GraphParity]
    decodes: list[DecodeParity]


def rows(step: str, against: str, differences: Mapping[str, Difference], limit: float) -> list[GraphParity]:
    """Rows of the report for one measure."""
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
    """The report as HTML: one file, nothing fetched."""
    limits = {name: f"{value:g}" for name, value in parity.limits.items()}
    features = sorted({name for row in parity.decodes for name in row.identification})
    return _PAGE.substitute(
        title=escape(title),
        form=escape(parity.form),
        windows=escape(parity.windows),
        samplers=escape(", ".join(parity.samplers)),
        seed=parity.seed,
        identification=escape(parity.identification),
        psnr_db=limits["psnr_db"],
        change=limits["identification"],
        graphs=_table(
            ("step", "against", "what", "largest difference", "relative", "limit"),
            [
                (
                    row.step,
                    row.against,
                    row.what,
                    f"{row.largest:.2g}",
                    f"{row.relative:.2g}",
                    f"{row.limit:g}",
                )
                for row in parity.graphs
            ],
        ),
        decodes=_table(
            ("way", "runs on", "PSNR, dB", "largest difference, of 255", "relative", *features),
            [_decode_cells(row, features) for row in parity.decodes],
        ),
    )


def _decode_cells(row: DecodeParity, features: list[str]) -> tuple[str, ...]:
    if row.runs_on is None:
        return row.way, f"not here: {row.reason}", "", "", "", *("" for _ in features)
    figures = (row.psnr_db, row.largest_levels, row.relative)
    return (
        row.way,
        row.runs_on,
        *("" if figure is None else f"{figure:.3g}" for figure in figures),
        *(_interval(row.identification[name]) if name in row.identification else "" for name in features),
    )


def _interval(found: Identification) -> str:
    if found.value is None or found.low is None or found.high is None:
        return ""
    return f"{100 * found.value:.2f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _table(head: Iterable[str], lines: Iterable[tuple[str, ...]]) -> str:
    def row(tag: str, cells: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row('th', head)}{''.join(row('td', cells) for cells in lines)}</table>"


_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Parity of $title</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
  table { border-collapse: collapse; margin: 1rem 0; }
  th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #8884; }
  td { font-variant-numeric: tabular-nums; vertical-align: top; }
</style>
<h1>Parity of $title</h1>
<p>Form: $form. Past a limit no bundle is made: this one stayed within all of them.</p>
<h2>Graphs</h2>
<p>Largest differences over a graph's cases: steps along the sampler, guided and not; random windows; random
latents. Relative is to the largest number of what is compared; of pictures, beyond the one level that
rounding can flip. <i>noise</i> is what the UNet predicts.</p>
$graphs
<h2>Whole decodes</h2>
<p>Each way against torch and diffusers in fp32, before any merge, on $windows; by $samplers,
from noise of seed $seed. Limits: a PSNR of at least $psnr_db dB; identification that changes by at most
$change.</p>
$decodes
<p>$identification</p>
</html>
""")
