"""Opens the run in a folder for decoding: one that has just begun, or one that was decoded in part."""

from __future__ import annotations

from pathlib import Path

from realtime.bundle.bundle import Bundle
from realtime.bundle.decoding_quality import quality_in_words
from realtime.bundle.trained_on import trained_on
from realtime.decoding.engines.choose import PASSED_OVER
from realtime.errors import RealtimeError, RecordError
from realtime.record.folder import RunFolder
from realtime.record.run_json import EngineUsed, Faces, begins_with, decoders_of, resampling_in_words
from realtime.runs.queue import NewestWins
from realtime.runs.run import Run
from realtime.runs.statistics import PRIOR_FILE, last_run


def open_run(path: Path, bundle: Bundle, engine: EngineUsed, faces: Faces, *, carry: bool = False) -> Run:
    """Open a run; volumes that have a row keep their state.

    :param engine: the one that decodes from now on
    :param faces: how faces are recorded from now on
    :param carry: a run that has just begun starts with the statistics of the run before, if there is one
    :raises RecordError: when the folder is damaged, or another user's
    """
    folder = RunFolder.open(path, decoders_of(bundle.spec))
    try:
        first_words = ""
        if folder.is_fresh:
            first_words = _begin(folder, bundle, engine, faces, carry=carry)
        else:
            if engine_alone(engine) != engine_alone(folder.info.engine):
                folder.changes("engine", f"from here on decoded on another engine: {engine.description}")
            if faces != folder.info.faces:
                folder.changes("faces", f"from here on faces are {faces}")
        run = Run(folder, bundle, NewestWins())
    except (RealtimeError, ValueError) as error:  # ValueError: a row that does not belong to this run
        folder.let_go()
        raise RecordError(f"cannot go on with {path}: {error}") from error
    if first_words:
        run.tell(f"{run.start.run_id} begins; {first_words}; it is recorded in {path}")
        if said := trained_on(bundle.spec, run.start.run_id):
            run.warn(said)
    return run


def engine_alone(engine: EngineUsed) -> EngineUsed:
    """An engine without what was passed over for it: that changes no frame."""
    return EngineUsed(name=engine.name, description=engine.description.partition(PASSED_OVER)[0])


def _begin(folder: RunFolder, bundle: Bundle, engine: EngineUsed, faces: Faces, *, carry: bool) -> str:
    """Say what decodes a run that has just begun; returns the statistics that it begins with, in words."""
    carried = last_run(folder.path.parent, bundle) if carry else None
    if carried:
        folder.write_file(PRIOR_FILE, carried.statistics.as_npz())
    folder.begin(
        engine=engine,
        faces=faces,
        prior_from=carried.run if carried else None,
        bundle_signed_by=bundle.signed.by,
        bundle_folder=str(bundle.folder.absolute()),
        decoding_quality=quality_in_words(bundle.spec),
    )
    words = f"its statistics begin with {begins_with(folder.info)}"
    if carry and not carried:
        words += ", because there is no earlier run with this bundle"
    if carry:
        folder.note(words)
    resampling = resampling_in_words(folder.info)
    return f"{resampling}; {words}" if resampling else words
