"""The sessions and runs of the experiment, and those of them on disk."""

from __future__ import annotations

from typing import NamedTuple

from nsd.errors import BadRequest, MissingFile
from nsd.layout import Layout

TR_S = 4 / 3
"""Repetition time of the 1.8 mm series in seconds."""

SUBJECTS_SESSIONS = {1: 40, 2: 40, 3: 32, 4: 30, 5: 40, 6: 32, 7: 40, 8: 30}
"""Number of NSD sessions by subject."""

TASK_RUNS_PER_SESSION = 12

_FIRST_14_RUN_SESSION = 21
_LAST_14_RUN_SESSION = {1: 38, 5: 38}
_LAST_14_RUN_SESSION_OF_OTHERS = 30


class RunKey(NamedTuple):
    """Identifies a run; all numbers count from 1."""

    subject: int
    session: int
    run: int

    def __str__(self) -> str:
        return f"subject {self.subject}, session {self.session}, run {self.run}"


def check_session(subject: int, session: int) -> None:
    """Check that ``subject`` was scanned in ``session``. :raises BadRequest: if not"""
    if subject not in SUBJECTS_SESSIONS:
        raise BadRequest(f"subject {subject}: expected 1 to {len(SUBJECTS_SESSIONS)}")
    n_sessions = SUBJECTS_SESSIONS[subject]
    if not 1 <= session <= n_sessions:
        raise BadRequest(f"session {session}: expected 1 to {n_sessions} for subject {subject}")


def task_runs(subject: int, session: int) -> range:
    """Return the numbers of the task runs: 1..12, or 2..13 in sessions whose runs 1 and 14 are rest."""
    check_session(subject, session)
    last = _LAST_14_RUN_SESSION.get(subject, _LAST_14_RUN_SESSION_OF_OTHERS)
    first_run = 2 if _FIRST_14_RUN_SESSION <= session <= last else 1
    return range(first_run, first_run + TASK_RUNS_PER_SESSION)


def runs(layout: Layout, subject: int) -> list[RunKey]:
    """Return the task runs of ``subject`` whose series are on disk, sorted.

    :raises MissingFile: when there is none
    """
    check_session(subject, 1)
    keys = [
        RunKey(subject, session, run)
        for session in range(1, SUBJECTS_SESSIONS[subject] + 1)
        for run in task_runs(subject, session)
        if layout.timeseries(subject, session, run).is_file()
    ]
    if not keys:
        raise MissingFile(layout.timeseries(subject, 1, 1), f"at least one task run of subject {subject}")
    return keys
