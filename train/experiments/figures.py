"""The figures of an experiment's page, as SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import msgspec
import numpy as np

from train.evaluation.results_table import METRICS
from train.experiments.entries import HEADLINES, Entry
from train.experiments.findings import LINEAR, Report


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """How the loss of a model on held-out presentations fell."""

    losses: list[tuple[int, float]]
    """Steps, and the loss after them; empty where it was not measured."""
    reached: bool | None
    """Whether it had ceased to fall when the training ended."""


def figure_of(report: Report) -> str:
    """The headline metrics as SVG: lines over ``x``, or dots by row."""
    n_rows = len(report.entries)
    size_in = (10, 6) if report.axis else (10, 1.2 + 0.3 * n_rows)
    with _drawing(report.name, size_in) as (figure, text):
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
    return text[0]


def figure_of_curves(name: str, curves: Mapping[str, Learned]) -> str:
    """The loss on held-out presentations over the steps of every model, as SVG; empty where none was
    measured.

    A ring marks the weights that are used; a line that ends in a cross had not reached its plateau.
    """
    measured = {model: curve for model, curve in curves.items() if curve.losses}
    if not measured:
        return ""
    with _drawing(f"{name} curves", (10, 4 + 0.1 * len(measured))) as (figure, text):
        plot = figure.subplots()
        for model, curve in measured.items():
            steps, losses = zip(*curve.losses, strict=True)
            (line,) = plot.plot(steps, losses, linewidth=1, label=model)
            at, lowest = min(curve.losses, key=itemgetter(1))
            plot.plot(at, lowest, "o", color=line.get_color(), markersize=5, fillstyle="none")
            if not curve.reached:
                plot.plot(steps[-1], losses[-1], "x", color=line.get_color(), markersize=7)
        plot.set_xlabel("steps")
        plot.set_ylabel("loss on held-out presentations")
        figure.legend(loc="outside right upper", ncols=1 + len(measured) // 24, fontsize=7)
    return text[0]


@contextmanager
def _drawing(name: str, size_in: tuple[float, float]) -> Iterator[tuple[Any, list[str]]]:
    """A figure, and a list that has its SVG after the block."""
    import matplotlib as mpl  # slow to import, and needed only here
    from matplotlib.figure import Figure

    text: list[str] = []
    with mpl.rc_context({"svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=size_in, layout="constrained")
        yield figure, text
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    text.append(written.getvalue()[written.getvalue().index("<svg") :])


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
