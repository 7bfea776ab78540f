"""``report.html``: one file with everything in it, so that it can be sent and kept."""

from __future__ import annotations

import base64
from collections import Counter
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from realtime.record.reader import Recorded, Trial
from realtime.record.tables import Row

if TYPE_CHECKING:
    from realtime.report.identification import Identification
    from realtime.report.summary import Summary

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 220, 48, 24
_COLOURS = {
    "decoded": "#4caf84",
    "warming": "#d9a441",
    "censored": "#b07cd8",
    "skipped": "#e2653f",
    "missing": "#6b7280",
}


def page(summary: Summary, recorded: Recorded) -> str:
    """The report of a run as HTML."""
    return _PAGE.substitute(
        title=escape(summary.run_id),
        when=escape(f"{recorded.info.opened_utc} to {recorded.info.closed_utc or 'now: still open'}"),
        bundle=escape(f"{recorded.info.bundle_name} · {summary.bundle_sha256}"),
        notes="".join(f"<li>{escape(note)}</li>" for note in summary.notes),
        account=_account(summary, recorded.rows),
        strip=_strip(summary.planned, recorded.rows),
        scores=_scores(summary.identification),
        bank=_bank(summary, recorded),
        latency=_latency_plot(summary, recorded.rows),
        trials="".join(_trial(trial) for trial in recorded.trials())
        or "<p>No picture was shown and decoded.</p>",
        versions=escape(", ".join(f"{name} {v}" for name, v in recorded.info.versions.items())),
    )


def _account(summary: Summary, rows: tuple[Row, ...]) -> str:
    reasons = Counter((row.state, row.reason) for row in rows if row.reason)
    cells = []
    for state, colour in _COLOURS.items():
        why = "; ".join(
            f"{escape(reason)} ({n})" for (of, reason), n in reasons.items() if of == state and reason
        )
        cells.append(
            f'<tr><td><i style="background:{colour}"></i>{state}</td>'
            f"<td class=n>{getattr(summary, state)}</td><td>{why}</td></tr>"
        )
    total = f"<tr><td>planned</td><td class=n>{summary.planned}</td><td>{summary.received} received</td></tr>"
    return "".join(cells) + total


def _strip(planned: int, rows: tuple[Row, ...]) -> str:
    """Every planned volume as a bar in the colour of its state."""
    bars = "".join(
        f'<rect x="{row.volume}" width="1" height="1" fill="{_COLOURS[row.state]}">'
        f"<title>volume {row.volume}: {row.state}</title></rect>"
        for row in rows
    )
    return f'<svg class=strip viewBox="0 0 {planned} 1" preserveAspectRatio="none">{bars}</svg>'


def _scores(identification: dict[str, Identification], decoder: str = "") -> str:
    """Rows of the table of scores; of a specialised decoder, under its name."""
    lines = []
    for name, score in identification.items():
        if score.value is None or score.low is None or score.high is None:
            cells = f"<td colspan=3>too few trials ({score.n_trials})</td>"
        else:
            cells = (
                f"<td class=n>{100 * score.value:.1f} %</td>"
                f"<td class=n>{100 * score.low:.1f} to {100 * score.high:.1f} %</td>"
                f"<td class=n>{score.n_trials}</td>"
            )
        lines.append(f"<tr><td>{escape(decoder)}{escape(_SCORE_NAMES.get(name, name))}</td>{cells}</tr>")
    return "".join(lines)


_SCORE_NAMES = {
    "pixels": "pixels (PixCorr)",
    "features": "features (HOG: shape)",
    "efficientnet_lite0": "features (EfficientNet-Lite0)",
}


def _bank(summary: Summary, recorded: Recorded) -> str:
    """What specialised decoders made of the pictures: a row for each, a picture's windows in a column."""
    if not summary.specialised:
        return ""
    scores = "".join(_scores(each.identification, f"{name}: ") for name, each in summary.specialised.items())
    by_decoder = {
        name: {trial.picture.onset_volume: trial for trial in recorded.trials(name)}
        for name in summary.specialised
    }
    onsets = sorted(set().union(*by_decoder.values()))[-_BANK_PICTURES:]
    shown = {picture.onset_volume: picture.path for picture in recorded.pictures}
    rows = ["<tr><th>shown</th>" + "".join(f"<td><img src={_inline(shown[at])}></td>" for at in onsets)]
    for name, trials in by_decoder.items():
        cells = (f"<img src={_inline(trials[at].frame)}>" if at in trials else "" for at in onsets)
        rows.append(f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells))
    return _BANK.substitute(scores=scores, rows="</tr>".join(rows) + "</tr>", n=len(onsets))


def _latency_plot(summary: Summary, rows: tuple[Row, ...]) -> str:
    """Compute latency of every frame over the run, with p95 and, where it fits in, the TR."""
    frames = [(row.volume, row.total_ms, row.state) for row in rows if row.total_ms is not None]
    if not frames or summary.latency_ms.p95 is None:
        return "<p>No frame was decoded.</p>"
    tr_ms = 1e3 * summary.tr_s
    top_ms = 1.15 * max(tr_ms, *(latency for _, latency, _ in frames))

    def x(volume: int) -> float:
        return _LEFT + volume / max(1, summary.planned - 1) * (_WIDTH - _LEFT - 8)

    def y(ms: float) -> float:
        return (_HEIGHT - _BOTTOM) * (1 - ms / top_ms)

    def level(ms: float, name: str) -> str:
        return (
            f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y(ms):.1f}" y2="{y(ms):.1f}" class=level />'
            f'<text x="{_WIDTH - 4}" y="{y(ms) - 4:.1f}" text-anchor="end">{name} {ms:.0f} ms</text>'
        )

    dots = "".join(
        f'<circle cx="{x(volume):.1f}" cy="{y(ms):.1f}" r="2.5" fill="{_COLOURS[state]}">'
        f"<title>volume {volume}: {ms:.0f} ms</title></circle>"
        for volume, ms, state in frames
    )
    axis = "".join(
        f'<text x="{x(volume):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{volume}</text>'
        for volume in range(0, summary.planned, max(1, summary.planned // 9 // 5 * 5))
    )
    levels = level(tr_ms, "TR") + level(summary.latency_ms.p95, "p95")
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}">{axis}{levels}{dots}</svg>'


def _trial(trial: Trial) -> str:
    mark = "" if trial.row.state == "decoded" else " · warming"
    return (
        f"<figure><img src={_inline(trial.picture.path)} alt='shown'>"
        f"<img src={_inline(trial.frame)} alt='decoded'>"
        f"<figcaption>{trial.picture.onset_volume} → {trial.row.volume}{mark}<br>"
        f"{escape(trial.picture.name)}</figcaption></figure>"
    )


def _inline(path: Path) -> str:
    return '"data:image/png;base64,' + base64.b64encode(path.read_bytes()).decode() + '"'


_BANK_PICTURES = 12
_BANK = Template("""<h2>Specialised decoders</h2>
<p>Each decodes, of every picture, the window that it was trained for; the earliest is above.</p>
<table>
<tr><th>compared in</th><th class=n>identified</th><th class=n>95 % interval</th><th class=n>trials</th></tr>
$scores</table>
<p>The last $n pictures:</p>
<table class=bank>$rows</table>
""")

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: dark; --ink: #d7dde6; --dim: #8b96a5; --line: #2b333e; }
body { background: #11151a; color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p, li, figcaption, small { color: var(--dim); }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left;
  vertical-align: top; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td i { display: inline-block; width: .8em; height: .8em; margin-right: .6em; border-radius: 2px; }
svg { width: 100%; display: block; } svg.strip { height: 18px; margin-top: 1rem; background: #1c2229; }
svg text { fill: var(--dim); font: 12px system-ui, sans-serif; }
.level { stroke: var(--dim); stroke-dasharray: 4 4; stroke-width: 1; }
.bank td { border: 0; padding: 1px; } .bank img { width: 100%; display: block; image-rendering: pixelated; }
.bank th { white-space: nowrap; vertical-align: middle; }
.trials { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 50%; image-rendering: pixelated; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; }
</style></head><body>
<h1>$title</h1>
<p>$when<br>bundle $bundle</p>
<ul>$notes</ul>
<h2>Every planned volume</h2>
<table>$account</table>
$strip
<h2>Two-way identification</h2>
<p>How often a decoded frame resembles the picture shown more than another picture of the run.
Chance is 50 %.</p>
<table>
<tr><th>compared in</th><th class=n>identified</th><th class=n>95 % interval</th><th class=n>trials</th></tr>
$scores</table>
$bank<h2>Compute latency by volume</h2>
<p>From the last byte of the volume to the frame. The haemodynamic delay of the window comes before it.</p>
$latency
<h2>Shown (left) and decoded (right), by onset volume</h2>
<div class="trials">$trials</div>
<p><small>$versions</small></p>
</body></html>
""")
