"""Writes an experiment's page, figure and JSON file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from train.evaluation.results_table import BY_PICTURE, DIRECTIONS, METRICS, NotComputed, cell
from train.experiments.entries import HEADLINES, Entry
from train.experiments.findings import LINEAR, Report
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
    "cannot be said": ("finding unsaid", "? It cannot be said from what was trained here."),
}
"""CSS class and sentence of each verdict."""


def write_page(report: Report, facts: dict[str, str], out: Path) -> Path:
    """Write ``NAME.json``, the figure ``NAME.svg``, and ``NAME.html``, whose path is returned.

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
    }
    (out / f"{report.name}.json").write_text(json.dumps(content, indent=1))
    figure = _figure(report)
    (out / f"{report.name}.svg").write_text(figure, encoding="utf-8")
    page = out / f"{report.name}.html"
    page.write_text(_page(report, facts, figure), encoding="utf-8")
    return page


def _computed(entry: Entry) -> dict[str, Any]:
    """An entry without the metrics whose networks are missing."""
    scores = {name: score for name, score in entry.scores.items() if not isinstance(score, NotComputed)}
    return {"series": entry.series, "x": entry.x, "scores": msgspec.to_builtins(scores)}


def _page(report: Report, facts: dict[str, str], figure: str) -> str:
    computed = [m for m in METRICS if not isinstance(report.entries[0].scores[m.name], NotComputed)]
    return _TEMPLATES.get_template("page.html.jinja").render(
        report=report,
        verdicts=_VERDICTS,
        figure=figure,
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


def _figure(report: Report) -> str:
    """The headline metrics as SVG: lines over ``x``, or dots by row."""
    import matplotlib as mpl  # slow to import, and needed only here
    from matplotlib.figure import Figure

    n_rows = len(report.entries)
    size_in = (10, 6) if report.axis else (10, 1.2 + 0.3 * n_rows)
    with mpl.rc_context({"svg.hashsalt": report.name, "font.size": 9}):
        figure = Figure(figsize=size_in, layout="constrained")
        axes = figure.subplots(2, 2, sharex=True) if report.axis else figure.subplots(1, 4, sharey=True)
        for metric, plot in zip(HEADLINES, axes.flat, strict=True):
            if report.axis:
                _lines(plot, report.entries, metric)
            else:
                _dots(plot, report.entries, metric)
            chance = next(each.chance for each in METRICS if each.name == metric)
            if chance is not None:
                line = plot.axhline if report.axis else plot.axvline
                line(chance, color="0.6", linestyle=":", zorder=0)
            plot.set_title(metric)
        if report.axis:
            handles, names = axes.flat[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper center", ncols=2)
            for plot in axes[1]:
                plot.set_xlabel(report.axis)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _lines(plot: Any, entries: Sequence[Entry], metric: str) -> None:
    for series in dict.fromkeys(entry.series for entry in entries):
        of_series = [entry for entry in entries if entry.series == series]
        points = sorted(((entry.x or 0.0, entry.score(metric)) for entry in of_series), key=itemgetter(0))
        x = [at for at, _ in points]
        style = "--" if LINEAR in series else "-"
        plot.plot(x, [score.value for _, score in points], style, marker="o", markersize=3, label=series)
        plot.fill_between(x, [s.low for _, s in points], [s.high for _, s in points], alpha=0.2, linewidth=0)


def _dots(plot: Any, entries: Sequence[Entry], metric: str) -> None:
    scores = [entry.score(metric) for entry in entries]
    values = np.array([score.value for score in scores])
    errors = [values - [score.low for score in scores], [score.high for score in scores] - values]
    places = np.arange(len(entries))[::-1]
    plot.errorbar(values, places, xerr=errors, fmt="o", markersize=4, capsize=2)
    plot.set_yticks(places, [entry.series for entry in entries])


def _data_uri(pictures: Pictures) -> str:
    """Pictures ``[n, H, W, 3]`` side by side, as one WebP image."""
    strip = cv2.cvtColor(np.concatenate(list(pictures), axis=1), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".webp", strip, [cv2.IMWRITE_WEBP_QUALITY, 85])
    return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode()


def _label(entry: Entry, axis: str | None) -> str:
    return entry.series if axis is None or entry.x is None else f"{entry.series}, {entry.x:.1f}"
