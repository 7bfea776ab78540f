"""Writes ``summary.json`` and ``report.html`` of a run, with a network's score if it is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import msgspec

from realtime.atomic import write_whole
from realtime.errors import RecordError
from realtime.record.reader import Recorded, read_recorded
from realtime.report.identification import Identification
from realtime.report.page import page
from realtime.report.summary import PIXELS, Summary, summarize

NETWORK = "EffNet-Lite0"
"""As the tables of ``python -m train evaluate`` name it."""
_NETWORK_PACKAGE = "efficientnet_lite_pytorch"
_SCORE_TIMEOUT_S = 600


def write_report(run_folder: Path) -> Summary:
    """Write ``summary.json`` and ``report.html`` into a run folder.

    :raises RecordError: when the folder is damaged or cannot be written
    """
    recorded = read_recorded(run_folder)
    summary = summarize(recorded)
    save(run_folder, summary, recorded)
    return summary


def add_network(summary: Summary, run_folder: Path) -> None:
    """Add the score in features of EfficientNet-Lite0 to a summary, or a note that says why it is missing."""
    if summary.identification[PIXELS].n_trials < 2:
        return
    score = score_with_network(run_folder)
    if isinstance(score, str):
        summary.notes.append(score)
    else:
        summary.identification[NETWORK] = score


def save(folder: Path, summary: Summary, recorded: Recorded) -> None:
    """Write both files into ``folder``, for this user only.

    :raises RecordError: when the folder cannot be written
    """
    try:
        text = msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"
        write_whole(folder / "summary.json", text, private=True)
        write_whole(folder / "report.html", page(summary, recorded), private=True)
    except OSError as error:
        raise RecordError(f"cannot write the report into {folder}: {error.strerror or error}") from error


def score_with_network(run_folder: Path) -> Identification | str:
    """Two-way identification in features of EfficientNet-Lite0, or a sentence that says why not.

    The network needs torch, which this package never imports, so it runs in another process.
    """
    if importlib.util.find_spec(_NETWORK_PACKAGE) is None:
        return f"EffNet-Lite0 was not scored: {_NETWORK_PACKAGE} is not installed"
    command = [sys.executable, "-P", "-m", "train", "score", "--run", str(run_folder), "--json"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_SCORE_TIMEOUT_S)
        return msgspec.json.decode(done.stdout, type=Identification)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        said = getattr(error, "stderr", None) or b""
        reason = said.decode(errors="replace").strip().splitlines()[-1:] or [str(error)]
        return f"EffNet-Lite0 was not scored: {reason[0]}"
