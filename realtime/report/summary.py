"""The figures of a run, as ``summary.json`` has them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from realtime.events import STATES
from realtime.record.reader import Recorded, Trial
from realtime.record.run_json import resampling_in_words
from realtime.report.identification import Identification, Interval, hog, identification, pixels, stack
from realtime.report.quality import QualitySummary, in_words, summarize_quality

PIXELS, HOG = "Pixels", "HOG"
"""Metrics, by the names that they have in the tables of ``python -m train evaluate``."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Compute latency over the first decoder's frames; None where there is no frame."""

    p50: float | None
    p95: float | None
    max: float | None


class DecoderSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one decoder, over the windows that it was to decode."""

    decoded: int
    warming: int
    skipped: int
    identification: dict[str, Identification]
    """By metric: :data:`PIXELS`, :data:`HOG`. Trials of trusted frames only."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """``summary.json``; decoded, warming, censored, skipped and missing add up to planned."""

    run_id: str
    state: str
    """``closed``, or ``open`` when the run can still go on; volumes that have not come count as missing."""
    planned: int
    received: int
    decoded: int
    warming: int
    censored: int
    skipped: int
    missing: int
    tr_s: float
    latency_ms: Latency
    identification: dict[str, Identification]
    """Of the first decoder."""
    decoders: dict[str, DecoderSummary]
    """All of them: the first, then the others by how soon after a picture's onset their windows end."""
    specialised: dict[str, DecoderSummary]
    """``decoders`` without the first: what there was before ``decoders``."""
    quality: QualitySummary | None
    """None for a run of an earlier release."""
    bundle_sha256: str
    notes: list[str]


def summarize(recorded: Recorded) -> Summary:
    """The figures of a run, from its folder alone."""
    planned = recorded.info.start.n_volumes
    first, *others = recorded.info.decoders
    names = [first.name, *(each.name for each in sorted(others, key=lambda each: each.window_delay_volumes))]
    decoders = {name: _summarize_decoder(recorded, name) for name in names}
    states = [row.state for row in recorded.rows_by(first.name)]
    counts = {state: states.count(state) for state in STATES}
    counts["missing"] += planned - len(states)
    return Summary(
        run_id=recorded.info.start.run_id,
        state=recorded.info.state,
        planned=planned,
        received=len(recorded.received),
        **counts,
        tr_s=recorded.info.start.tr_s,
        latency_ms=_latency(recorded),
        identification=decoders[first.name].identification,
        decoders=decoders,
        specialised={name: decoders[name] for name in names[1:]},
        quality=summarize_quality(recorded.quality),
        bundle_sha256=recorded.info.bundle_sha256,
        notes=_notes(recorded, len(trusted(recorded))),
    )


def trusted(recorded: Recorded, decoder: str | None = None) -> list[Trial]:
    """A decoder's trials (by default the first's) whose frame was decoded with trusted statistics."""
    return [trial for trial in recorded.trials(decoder) if trial.row.state == "decoded"]


def _summarize_decoder(recorded: Recorded, decoder: str) -> DecoderSummary:
    states = [row.state for row in recorded.rows_by(decoder)]
    trials = trusted(recorded, decoder)
    return DecoderSummary(
        decoded=states.count("decoded"),
        warming=states.count("warming"),
        skipped=states.count("skipped"),
        identification={PIXELS: _identify(trials, pixels), HOG: _identify(trials, hog)},
    )


def lines(summary: Summary) -> list[str]:
    """The summary for a terminal."""
    latency = summary.latency_ms
    account = ", ".join(f"{getattr(summary, state)} {state}" for state in STATES)
    found = [
        f"volumes         {summary.planned} planned, {summary.received} received: {account}",
        "latency         "
        + (
            f"p50 {latency.p50:.0f} ms, p95 {latency.p95:.0f} ms, max {latency.max:.0f} ms "
            if latency.p50 is not None and latency.p95 is not None and latency.max is not None
            else "no frame "
        )
        + f"(TR {1e3 * summary.tr_s:.0f} ms)",
    ]
    found += [f"quality         {in_words(summary.quality)}"] if summary.quality else []
    found += [f"{name:<15} {_score_line(score)}" for name, score in summary.identification.items()]
    found += [f"{name:<15} {_decoder_line(each)}" for name, each in summary.specialised.items()]
    return found + [f"note            {note}" for note in summary.notes]


def _decoder_line(found: DecoderSummary) -> str:
    counts = f"{found.decoded} decoded, {found.warming} warming, {found.skipped} skipped"
    return f"{counts}; {PIXELS} {_score_line(found.identification[PIXELS])}"


def _score_line(score: Identification) -> str:
    if score.value is None or score.low is None or score.high is None:
        return f"identification not scored: expected at least 2 trials, got {score.n_trials}"
    by_picture = "" if score.by_picture is None else f", {_share(score.by_picture)} by picture"
    return (
        f"{_share(score)} by decode{by_picture} (two-way identification with 95 % intervals, chance "
        f"{100 * score.chance:.0f}, {score.n_trials} trials)"
    )


def _share(score: Identification | Interval) -> str:
    assert score.value is not None
    assert score.low is not None
    assert score.high is not None
    return f"{100 * score.value:.1f} % [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _identify(
    trials: list[Trial], features: Callable[[NDArray[np.uint8]], NDArray[np.float64]]
) -> Identification:
    true = stack([features(trial.shown_image()) for trial in trials])
    decoded = stack([features(trial.decoded_image()) for trial in trials])
    return identification(true, decoded)


def _latency(recorded: Recorded) -> Latency:
    rows = recorded.rows_by(recorded.info.first_decoder)
    total_ms = [row.total_ms for row in rows if row.total_ms is not None]
    if not total_ms:
        return Latency(p50=None, p95=None, max=None)
    # Without interpolation: each is the latency of a frame, as on the live page.
    quantiles = np.quantile(total_ms, [0.5, 0.95, 1.0], method="inverted_cdf")
    p50, p95, largest = (round(float(value), 3) for value in quantiles)
    return Latency(p50=p50, p95=p95, max=largest)


def _notes(recorded: Recorded, n_trials: int) -> list[str]:
    notes = list(recorded.info.notes)
    if resampling := resampling_in_words(recorded.info):
        notes.append(resampling)
    if recorded.info.state == "open":
        notes.append("the run is still open: volumes that have not come yet are counted as missing")
    if n_trials < 2:
        notes.append(
            f"identification was not scored: it takes two trials with a trusted frame, there are {n_trials}"
        )
    return notes
