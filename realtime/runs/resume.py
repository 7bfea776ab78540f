"""Begins a run, or resumes one that a crash or a stop of the runtime left open."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.errors import RealtimeError, RecordError
from realtime.events import KEPT, Event, Shown
from realtime.preprocessing.spikes import SpikeRule
from realtime.record.folder import RunFolder
from realtime.record.run_json import EngineUsed, Faces, new_run_file, read_run_file, takes_of
from realtime.record.tables import row_frame
from realtime.runs.run import Run, decoders_of
from realtime.runs.statistics import PRIOR_FILE, in_words, last_run

_log = logging.getLogger(__name__)


def open_folders(out: Path, bundle_sha256: str) -> list[Path]:
    """Run folders under ``out`` that were left open with this bundle, the newest first."""
    found = []
    for file in out.glob("[!.]*/run.json"):  # a hidden folder is one that a crash left half-made
        try:
            info = read_run_file(file.parent)
        except RecordError as error:
            _log.warning("ignored a run folder: %s", error)
            continue
        is_ours = info.replay_of is None and info.bundle_sha256 == bundle_sha256
        if info.state == "open" and is_ours:
            found.append((info.opened_utc, file.parent))
    return [path for _, path in sorted(found, reverse=True)]


def unfinished_run(out: Path, bundle_sha256: str) -> wire.RunStart | None:
    """The start of the run that would be resumed with this bundle, if any was left open."""
    for path in open_folders(out, bundle_sha256)[:1]:
        return read_run_file(path).start
    return None


def is_closed(out: Path, run_id: str) -> bool:
    """Whether the last take of a run was closed."""
    takes = list(takes_of(out, run_id))
    return bool(takes) and read_run_file(takes[-1]).state == "closed"


def reopen(path: Path, bundle: Bundle, engine: EngineUsed | None = None, faces: Faces | None = None) -> Run:
    """Restore a run from its journal: it has the same statistics, and volumes with a row keep their state.

    Of the volumes that came and have no row, the newest is decoded; the others are skipped.

    :param engine: the one that decodes from now on
    :param faces: how faces are recorded from now on
    :raises RecordError: when the folder is damaged, or another runtime writes it
    """
    folder = RunFolder.reopen(path, decoders_of(bundle))
    try:
        run = Run(folder, bundle)
        for entry in folder.entries():
            run.restore(wire.decode_to_runtime(entry.header), entry.payload)
        run.tell(f"resumed at {run.where()} after a restart")
        folder.note(run.message)
        if engine and engine != folder.info.engine:
            folder.changes("engine", f"from here on decoded on another engine: {engine.description}")
        if faces and faces != folder.info.faces:
            folder.changes("faces", f"from here on faces are {faces}")
    except (RealtimeError, ValueError) as error:  # ValueError: a row that does not belong to this run
        folder.suspend()
        raise RecordError(f"cannot resume {path}: {error}") from error
    return run


def begin(
    out: Path,
    bundle: Bundle,
    seed: int,
    start: wire.RunStart,
    engine: EngineUsed = EngineUsed(),  # noqa: B008  # frozen
    faces: Faces = "shown",
    *,
    carry: bool = False,
) -> Run:
    """Resume the run's last take if it is open and was made with this bundle; else begin the next take.

    :param carry: begin with the statistics of the run before, if there is one
    :raises RecordError: when no run folder can be made
    """
    if resumed := _resume_last_take(out, bundle, start, engine, faces):
        return resumed
    carried = last_run(out, bundle) if carry else None
    info = new_run_file(
        start,
        bundle_name=bundle.spec.name,
        bundle_sha256=bundle.sha256,
        bundle_signed_by=bundle.signed.by,
        decoders=decoders_of(bundle),
        seed=seed,
        engine=engine,
        faces=faces,
        spikes=SpikeRule(),
        prior_from=carried.run if carried else None,
    )
    files = {PRIOR_FILE: carried.statistics.as_npz()} if carried else {}
    run = Run(RunFolder.create(out, info, files), bundle)
    begins_with = f"its statistics begin with {in_words(info)}"
    if carry and not carried:
        begins_with += ", because there is no earlier run with this bundle"
    if carry:
        run.folder.note(begins_with)
    run.tell(f"{start.run_id} begins; {begins_with}; it is recorded in {run.folder.path}")
    return run


def _resume_last_take(
    out: Path, bundle: Bundle, start: wire.RunStart, engine: EngineUsed, faces: Faces
) -> Run | None:
    for path in list(takes_of(out, start.run_id))[-1:]:
        try:
            info = read_run_file(path)
            theirs = (info.state, info.bundle_sha256, info.start, info.replay_of)
            if theirs == ("open", bundle.sha256, start, None):
                return reopen(path, bundle, engine, faces)
        except RecordError as error:
            _log.warning("%s", error)
    return None


def recorded_events(run: Run) -> Iterator[Event]:
    """The newest frames and pictures in the run folder, as events."""
    folder = run.folder
    for entry in folder.entries():
        message = wire.decode_to_runtime(entry.header)
        if isinstance(message, wire.Marker):
            shown = Shown(run_id=run.name, onset_volume=message.onset_volume, name=message.name)
            yield Event(shown, png=entry.payload, is_recorded=True)
    rows = folder.rows()
    newest = max((row.volume for row in rows), default=0)
    for row in rows:
        if row.volume <= newest - KEPT:
            continue
        frame = row_frame(row, run.name)
        image = cv2.imread(str(folder.path / row.frame)) if row.frame else None
        if frame is not None and image is not None:
            rgb = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
            yield Event(frame, image=rgb, is_recorded=True)
