"""What a run came to: ``summary.json`` for programs, ``report.html`` for people."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from realtime.account import STATES
from realtime.errors import RecordError
from realtime.identify import Identification, hog, identification, pixels, stack
from realtime.recorded import Recorded, Trial, read_recorded
from realtime.report_page import page

NETWORK = "efficientnet_lite0"
_NETWORK_PACKAGE = "efficientnet_lite_pytorch"
_SCORE_TIMEOUT_S = 600


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Compute latency over all frames of a run; None where there is no frame."""

    p50: float | None
    p95: float | None
    max: float | None


class SpecialisedSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a bank's specialised decoder came to, of the windows of pictures that were its."""

    decoded: int
    warming: int
    skipped: int
    identification: dict[str, Identification]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """``summary.json``; decoded, warming, censored, skipped and missing add up to planned."""

    run_id: str
    state: str
    """``closed``; or ``open``, when the run can still go on: what has not come counts as missing."""
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
    """By kind of features. Trials of trusted frames only."""
    specialised: dict[str, SpecialisedSummary]
    """By decoder; empty without a bank."""
    bundle_sha256: str
    notes: list[str]


def summarize(recorded: Recorded) -> Summary:
    """The figures of a run, from its folder alone."""
    planned = recorded.info.start.n_volumes
    counts = {state: sum(row.state == state for row in recorded.rows) for state in STATES}
    counts["missing"] += planned - len(recorded.rows)
    trials = trusted(recorded)
    return Summary(
        run_id=recorded.info.start.run_id,
        state=recorded.info.state,
        planned=planned,
        received=len(recorded.received),
        **counts,
        tr_s=recorded.info.start.tr_s,
        latency_ms=_latency(recorded),
        identification=_identified(trials),
        specialised={name: _specialised(recorded, name) for name in recorded.specialised_decoders},
        bundle_sha256=recorded.info.bundle_sha256,
        notes=_notes(recorded, len(trials)),
    )


def trusted(recorded: Recorded, decoder: str | None = None) -> list[Trial]:
    """The trials that count: those whose frame was decoded with trusted statistics."""
    return [trial for trial in recorded.trials(decoder) if trial.row.state == "decoded"]


def _specialised(recorded: Recorded, decoder: str) -> SpecialisedSummary:
    states = [row.state for row in recorded.specialised if row.decoder == decoder]
    return SpecialisedSummary(
        decoded=states.count("decoded"),
        warming=states.count("warming"),
        skipped=states.count("skipped"),
        identification=_identified(trusted(recorded, decoder)),
    )


def _identified(trials: list[Trial]) -> dict[str, Identification]:
    return {"pixels": _identify(trials, pixels), "features": _identify(trials, hog)}


def write_report(run_folder: Path) -> Summary:
    """Write ``summary.json`` and ``report.html`` into a run folder.

    :raises RecordError: when the folder is damaged or cannot be written.
    """
    recorded = read_recorded(run_folder)
    summary = summarize(recorded)
    save(run_folder, summary, recorded)
    return summary


def add_network(summary: Summary, run_folder: Path) -> None:
    """Add the score in features of EfficientNet-Lite0 to a summary; a note where there is none."""
    if summary.identification["pixels"].n_trials < 2:
        return
    score = score_with_network(run_folder)
    if isinstance(score, str):
        summary.notes.append(score)
    else:
        summary.identification[NETWORK] = score


def save(folder: Path, summary: Summary, recorded: Recorded) -> None:
    """Write both files into ``folder``.

    :raises RecordError: when that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"
        (folder / "summary.json").write_bytes(text)
        (folder / "report.html").write_text(page(summary, recorded), encoding="utf-8")
    except OSError as error:
        raise RecordError(f"cannot write the report into {folder}: {error.strerror or error}") from error


def score_with_network(run_folder: Path) -> Identification | str:
    """Two-way identification in features of EfficientNet-Lite0; a sentence where that cannot be had.

    The network needs torch, which this package never imports: another process runs it.
    """
    if importlib.util.find_spec(_NETWORK_PACKAGE) is None:
        return f"features of EfficientNet-Lite0 were not scored: {_NETWORK_PACKAGE} is not installed"
    command = [sys.executable, "-P", "-m", "train", "score", "--run", str(run_folder), "--json"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_SCORE_TIMEOUT_S)
        return msgspec.json.decode(done.stdout, type=Identification)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        said = getattr(error, "stderr", None) or b""
        reason = said.decode(errors="replace").strip().splitlines()[-1:] or [str(error)]
        return f"features of EfficientNet-Lite0 were not scored: {reason[0]}"


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
    found += [f"{name:<15} {_score_line(score)}" for name, score in summary.identification.items()]
    found += [f"{name:<15} {_specialised_line(each)}" for name, each in summary.specialised.items()]
    return found + [f"note            {note}" for note in summary.notes]


def _specialised_line(found: SpecialisedSummary) -> str:
    counts = f"{found.decoded} decoded, {found.warming} warming, {found.skipped} skipped"
    return f"{counts}; pixels {_score_line(found.identification['pixels'])}"


def _score_line(score: Identification) -> str:
    if score.value is None or score.low is None or score.high is None:
        return f"not identified: {score.n_trials} trials are too few"
    return (
        f"{100 * score.value:.1f} % identified, two-way (95 % interval {100 * score.low:.1f} to "
        f"{100 * score.high:.1f}, chance {100 * score.chance:.0f}, {score.n_trials} trials)"
    )


def _identify(
    trials: list[Trial], features: Callable[[NDArray[np.uint8]], NDArray[np.float64]]
) -> Identification:
    true = stack([features(trial.shown_image()) for trial in trials])
    decoded = stack([features(trial.decoded_image()) for trial in trials])
    return identification(true, decoded)


def _latency(recorded: Recorded) -> Latency:
    total_ms = [row.total_ms for row in recorded.rows if row.total_ms is not None]
    if not total_ms:
        return Latency(p50=None, p95=None, max=None)
    # Values that occurred, as on the page.
    quantiles = np.quantile(total_ms, [0.5, 0.95, 1.0], method="inverted_cdf")
    p50, p95, largest = (round(float(value), 3) for value in quantiles)
    return Latency(p50=p50, p95=p95, max=largest)


def _notes(recorded: Recorded, n_trials: int) -> list[str]:
    notes = list(recorded.info.notes)
    if recorded.info.state == "open":
        notes.append("the run is still open: what has not come yet is counted as missing")
    if n_trials < 2:
        notes.append(f"nothing is identified: it takes two trials with a trusted frame, there are {n_trials}")
    return notes
