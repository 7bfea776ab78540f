"""Writes an experiment's page, figure and JSON file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from train.evaluation.results_table import BY_PICTURE, DIRECTIONS, METRICS, NotComputed, cell
from train.experiments.entries import Entry
from train.experiments.figures import Learned, figure_of, figure_of_curves
from train.experiments.findings import Report
from train.experiments.verdicts import Verdict
from train.model.sample import Pictures

N_STRIP = 12
_TEMPLATES = Environment(
    loader=PackageLoader("train.experiments", ""),
    autoescape=True,
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)
_VERDICTS: dict[Verdict, tuple[str, str]] = {
    "appears": ("finding", "✓ It appears in the synthetic data."),
    "does not appear": ("finding not", "✗ It does not appear in the synthetic data."),
    "cannot be said": ("finding unsaid", "? It cannot be said from what was made here."),
}
"""CSS class and sentence of each verdict."""


def write_page(report: Report, curves: Mapping[str, Learned], facts: dict[str, str], out: Path) -> Path:
    """Write ``NAME.json``, the figure ``NAME.svg``, and ``NAME.html``, whose path is returned.

    :param curves: how the models learned, by name
    :param facts: how the results were made, for the end of the page
    """
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "experiment": report.name,
        "question": report.question,
        "made": facts,
        "findings": msgspec.to_builtins(report.findings),
        "axis": report.axis,
        "entries": [_computed(entry) for entry in report.entries],
        "curves": msgspec.to_builtins(curves),
    }
    (out / f"{report.name}.json").write_text(json.dumps(content, indent=1))
    figure = figure_of(report)
    (out / f"{report.name}.svg").write_text(figure, encoding="utf-8")
    page = out / f"{report.name}.html"
    page.write_text(_page(report, curves, facts, figure), encoding="utf-8")
    return page


def _computed(entry: Entry) -> dict[str, Any]:
    """An entry without the metrics whose networks are missing."""
    scores = {name: score for name, score in entry.scores.items() if not isinstance(score, NotComputed)}
    return {"series": entry.series, "x": entry.x, "scores": msgspec.to_builtins(scores)}


def _page(report: Report, curves: Mapping[str, Learned], facts: dict[str, str], figure: str) -> str:
    computed = [m for m in METRICS if not isinstance(report.entries[0].scores[m.name], NotComputed)]
    return _TEMPLATES.get_template("page.html.jinja").render(
        report=report,
        verdicts=_VERDICTS,
        figure=figure,
        learned=figure_of_curves(report.name, curves),
        unfinished=[name for name, curve in curves.items() if curve.reached is False],
        strips=[(name, _data_uri(pictures[:N_STRIP])) for name, pictures in report.strips],
        metrics=computed,
        rows=[
            [_label(entry, report.axis), *(cell(metric, entry.scores[metric.name]) for metric in computed)]
            for entry in report.entries
        ],
        left_out=[
            metric.name
            for metric in METRICS
            if metric not in computed and not metric.name.endswith(BY_PICTURE)
        ],
        directions=DIRECTIONS,
        facts=facts,
    )


def _data_uri(pictures: Pictures) -> str:
    """Pictures ``[n, H, W, 3]`` side by side, as one WebP image."""
    strip = cv2.cvtColor(np.concatenate(list(pictures), axis=1), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".webp", strip, [cv2.IMWRITE_WEBP_QUALITY, 85])
    return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode()


def _label(entry: Entry, axis: str | None) -> str:
    return entry.series if axis is None or entry.x is None else f"{entry.series}, {entry.x:.1f}"
