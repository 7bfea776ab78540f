"""``report.html``: one file with all its pictures inside, so that it can be sent and kept."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from realtime.bundle.decoding_quality import near_chance
from realtime.events import STATES
from realtime.record.reader import Recorded, Trial
from realtime.record.tables import Row
from realtime.report import quality
from realtime.report.quality import panels
from realtime.report.summary import Summary

WIDTH_PX, HEIGHT_PX = 900, 220
"""Of the plot of latencies."""
_LEFT_PX, _RIGHT_PX, _BOTTOM_PX = 48, 8, 24
_UNSAID: dict[str, str] = {"warming": "decoded from statistics that had not settled yet"}
"""Why a volume is in a state where its row gives no reason."""
_NO_REASON = "no reason is recorded"
_NOT_YET = "not accounted for: the run is still open"
_PICTURES = 12
"""Columns of the table of a bank's frames."""


def page(summary: Summary, recorded: Recorded) -> str:
    """The report of a run as HTML."""
    rows = recorded.rows_by(recorded.info.first_decoder)
    return _ENVIRONMENT.get_template("report.html.jinja").render(
        summary=summary,
        info=recorded.info,
        states=STATES,
        reasons=_reasons(rows, summary),
        rows=rows,
        bank=_bank(summary, recorded),
        plot=_plot(summary, rows),
        panels=panels(recorded.quality, summary.planned),
        panel_px=(quality.WIDTH_PX, quality.HEIGHT_PX, quality.LEFT_PX),
        trials=recorded.trials(),
        near_chance=near_chance,
    )


def _reasons(rows: Sequence[Row], summary: Summary) -> dict[str, list[tuple[str, int]]]:
    """By state but for *decoded*: every reason with its number of volumes, which add up to the state's."""
    counted = Counter((row.state, row.reason or _UNSAID.get(row.state, _NO_REASON)) for row in rows)
    counted["missing", _NOT_YET] = summary.planned - len(rows)
    return {
        state: [(reason, n) for (of, reason), n in counted.items() if of == state and n]
        for state in STATES
        if state != "decoded"
    }


@dataclass(frozen=True, kw_only=True)
class Bank:
    """The last pictures that several decoders decoded, a column each."""

    shown: list[Path]
    frames: dict[str, list[Path | None]]
    """By decoder, the one whose windows end first on top: read downwards, a column is a picture over time."""


def _bank(summary: Summary, recorded: Recorded) -> Bank | None:
    decoders = sorted(recorded.info.decoders, key=lambda decoder: decoder.window_delay_volumes)
    trials = {decoder.name: _by_onset(recorded.trials(decoder.name)) for decoder in decoders}
    onsets = {onset for name in summary.specialised for onset in trials[name]}
    if not onsets:
        return None
    columns = sorted(onsets)[-_PICTURES:]
    shown = {picture.onset_volume: picture.path for picture in recorded.pictures}
    return Bank(
        shown=[shown[onset] for onset in columns],
        frames={
            name: [found[onset].frame if onset in found else None for onset in columns]
            for name, found in trials.items()
        },
    )


def _by_onset(trials: Sequence[Trial]) -> dict[int, Trial]:
    return {trial.picture.onset_volume: trial for trial in trials}


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A frame in the plot of latencies; x and y in px from its upper left corner."""

    x: float
    y: float
    row: Row


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Compute latency by volume, with the TR and the 95th percentile as horizontal lines."""

    width: int
    height: int
    left: int
    dots: list[Dot]
    levels: list[tuple[str, float, float]]
    """Name, ms, and y in px."""
    ticks: list[tuple[int, float]]
    """Volumes on the axis, and x in px."""


def _plot(summary: Summary, rows: Sequence[Row]) -> Plot | None:
    frames = [(row, row.total_ms) for row in rows if row.total_ms is not None]
    if not frames or summary.latency_ms.p95 is None:
        return None
    tr_ms = 1e3 * summary.tr_s
    top_ms = 1.15 * max(tr_ms, *(latency_ms for _, latency_ms in frames))

    def x(volume: int) -> float:
        return _LEFT_PX + volume / max(1, summary.planned - 1) * (WIDTH_PX - _LEFT_PX - _RIGHT_PX)

    def y(latency_ms: float) -> float:
        return (HEIGHT_PX - _BOTTOM_PX) * (1 - latency_ms / top_ms)

    step = max(1, summary.planned // 9 // 5 * 5)
    return Plot(
        width=WIDTH_PX,
        height=HEIGHT_PX,
        left=_LEFT_PX,
        dots=[Dot(x=x(row.volume), y=y(latency_ms), row=row) for row, latency_ms in frames],
        levels=[(name, ms, y(ms)) for name, ms in (("TR", tr_ms), ("p95", summary.latency_ms.p95))],
        ticks=[(volume, x(volume)) for volume in range(0, summary.planned, step)],
    )


def _as_url(path: Path) -> str:
    """A PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["as_url"] = _as_url
