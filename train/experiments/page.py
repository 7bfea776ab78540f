"""An experiment's page and JSON file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from operator import itemgetter
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

from train.evaluation.results_table import METRICS, NotComputed, cell
from train.experiments.entries import HEADLINES, Entry
from train.experiments.findings import LINEAR, Report
from train.experiments.verdicts import Finding, Verdict
from train.model.sample import Pictures

N_STRIP = 12
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto }
td, th { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left }
.finding { border-left: 6px solid #2a7; padding: 0.3rem 1rem; margin: 1rem 0; background: #f4faf7 }
.finding.not { border-left-style: double; border-color: #b70; background: #fbf7f0 }
.finding.unsaid { border-left-style: dashed; border-color: #777; background: #f6f6f6 }
.finding p { margin: 0.2rem 0 } .quiet { color: #666; font-size: 0.85rem }
.strip img { height: 56px; width: auto; display: block } .strip td { padding: 0 0.5rem 2px 0; border: 0 }
svg { max-width: 100%; height: auto }
"""
_VERDICTS: dict[Verdict, tuple[str, str]] = {
    "appears": ("finding", "✓ It appears in the synthetic data."),
    "does not appear": ("finding not", "✗ It does not appear in the synthetic data."),
    "cannot be said": ("finding unsaid", "? It cannot be said from what was trained here."),
}
"""Class and words of a verdict."""


def write_page(report: Report, facts: dict[str, str], out: Path) -> Path:
    """Write ``NAME.json``, the figure as ``NAME.svg``, and ``NAME.html``, whose path is returned.

    :param facts: how it was made, for the foot of the page
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
    """An entry without the metrics whose networks were not there."""
    scores = {name: score for name, score in entry.scores.items() if not isinstance(score, NotComputed)}
    return {"series": entry.series, "x": entry.x, "scores": msgspec.to_builtins(scores)}


def _page(report: Report, facts: dict[str, str], figure: str) -> str:
    body = [
        f"<h1>{escape(report.title)}</h1>",
        f"<p>{escape(report.question)}</p>",
        *(_finding(finding) for finding in report.findings),
        "<h2>Figures</h2>",
        figure,
        f"<p class=quiet>Means over trials with 95 % bootstrap intervals, each model by itself; two are "
        f"compared above, on the same trials. {escape(report.chance_at)}</p>",
        "<h2>Pictures</h2>" if report.strips else "",
        _strips(report.strips),
        "<h2>Table</h2>",
        _table(report),
        "<h2>How this was made</h2>",
        "<ul>",
        *(f"<li>{escape(note)}</li>" for note in report.notes),
        *(f"<li>{escape(name)}: {escape(value)}</li>" for name, value in facts.items()),
        "</ul>",
    ]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(report.title)}</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>\n"
        + "\n".join(body)
        + "\n</html>\n"
    )


def _finding(finding: Finding) -> str:
    kind, sentence = _VERDICTS[finding.verdict]
    return (
        f"<div class='{kind}'><p>{escape(finding.source)}: {escape(finding.claim)}</p>"
        f"<p><b>{sentence}</b> {escape(finding.here)}</p>{_differences(finding)}</div>"
    )


def _differences(finding: Finding) -> str:
    """What the verdict rests on, folded up."""
    if not finding.differences:
        return ""
    rows = "".join(
        f"<tr><td>{escape(each.one)} − {escape(each.other)}</td><td>{escape(each.metric)}</td>"
        f"<td>{100 * each.value:+.1f} [{100 * each.low:+.1f}, {100 * each.high:+.1f}]</td></tr>"
        for each in finding.differences
    )
    n_trials, n_pictures = finding.differences[0].n_trials, finding.differences[0].n_pictures
    return (
        f"<details class=quiet><summary>Differences on the same {n_trials} trials of {n_pictures} pictures, "
        f"in points</summary><table>{rows}</table></details>"
    )


def _figure(report: Report) -> str:
    """Lines over ``x``, or dots by row, of the headline metrics; as SVG."""
    import matplotlib as mpl  # slow to import, and needed here alone
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


def _strips(strips: Sequence[tuple[str, Pictures]]) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td><img alt='' src='{_data_uri(pictures[:N_STRIP])}'></td></tr>"
        for name, pictures in strips
    ]
    return f"<table class=strip>{''.join(rows)}</table>" if rows else ""


def _data_uri(pictures: Pictures) -> str:
    """Pictures ``[n, H, W, 3]`` side by side."""
    strip = cv2.cvtColor(np.concatenate(list(pictures), axis=1), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".webp", strip, [cv2.IMWRITE_WEBP_QUALITY, 85])
    return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode()


def _table(report: Report) -> str:
    computed = [m for m in METRICS if not isinstance(report.entries[0].scores[m.name], NotComputed)]
    left_out = [m.name for m in METRICS if m not in computed]
    head = "".join(
        f"<th>{escape(metric.name)} {'↑' if metric.better == 'higher' else '↓'}</th>" for metric in computed
    )
    rows = [
        f"<tr><td>{escape(_label(entry, report.axis))}</td>"
        + "".join(f"<td>{escape(cell(metric, entry.scores[metric.name]))}</td>" for metric in computed)
        + "</tr>"
        for entry in report.entries
    ]
    note = _not_computed(left_out)
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>{note}"


def _label(entry: Entry, axis: str | None) -> str:
    return entry.series if axis is None or entry.x is None else f"{entry.series}, {entry.x:.1f}"


def _not_computed(left_out: Sequence[str]) -> str:
    if not left_out:
        return ""
    return (
        f"<p class=quiet>Not computed, for want of their networks' weights: {escape(', '.join(left_out))}. "
        "<code>python -m train evaluate</code> says what to fetch for each.</p>"
    )
