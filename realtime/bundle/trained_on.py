"""Which recorded runs a bundle's decoder was not trained on, and what to say of one that it may have been.

A run tells its session and number only by a name as the simulated scanner gives it to a run of a data set in
NSD's layout. Of any other run nothing is said.
"""

from __future__ import annotations

import re

from realtime.bundle.spec import Spec

_NAME = re.compile(r"sub-(\d+)_ses-nsd(\d+)_task-nsdcore_run-(\d+)(_[a-z]+-[a-zA-Z0-9]+)*")
_NOTED = re.compile(r"(\d+)/(\d+)")


def held_out_runs(spec: Spec) -> tuple[tuple[int, int], ...] | None:
    """Session and run of what was held out; None where a bundle does not say what it was trained on.

    A bank says it where each of its decoders does.
    """
    if spec.trained_sessions:
        return spec.held_out_runs
    notes = _notes(spec)
    if not notes or not all("held_out_runs" in each for each in notes):
        return None
    runs = {run for each in notes for run in _noted_runs(each)}
    return tuple(sorted(run for run in runs if all(_held_out_by(each, run) for each in notes)))


def trained_on(spec: Spec, run_id: str) -> str:
    """That a bundle's decoder may have been trained on a run, in words; empty where nothing says so."""
    held_out, name = held_out_runs(spec), _NAME.fullmatch(run_id)
    if held_out is None or name is None:
        return ""
    subject, session, run = (int(name[n]) for n in (1, 2, 3))
    if subject != spec.subject or (session, run) in held_out or not _trained_in(spec, session):
        return ""
    example = "; it held out, for example, session {}, run {}".format(*held_out[0]) if held_out else ""
    return (
        f"this run may have been trained on, if it is of the data set that {spec.name} was trained on, which "
        f"did not hold out session {session}, run {run}: its frames may look better than those of a new "
        f"run{example}"
    )


def _trained_in(spec: Spec, session: int) -> bool:
    """Whether a session has runs that may have been trained on."""
    if spec.trained_sessions:
        return session in spec.trained_sessions
    return any(_notes_allow(each, session) for each in _notes(spec))


def _held_out_by(notes: dict[str, str], run: tuple[int, int]) -> bool:
    return run in _noted_runs(notes) or not _notes_allow(notes, run[0])


def _notes_allow(notes: dict[str, str], session: int) -> bool:
    """Whether a session is not later than all that a decoder was trained on."""
    n_sessions = notes.get("sessions", "")
    return not n_sessions.isdecimal() or session <= int(n_sessions)


def _noted_runs(notes: dict[str, str]) -> set[tuple[int, int]]:
    return {(int(session), int(run)) for session, run in _NOTED.findall(notes["held_out_runs"])}


def _notes(spec: Spec) -> list[dict[str, str]]:
    """What the provenance says of each decoder's training; earlier bundles say it nowhere else."""
    return [stage.notes for stage in spec.provenance if stage.name.split(": ")[-1] == "checkpoint"]
