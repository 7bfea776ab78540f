"""Which run of a data set is replayed: by default one that the subject's bundle was not trained on.

That bundle is the one in ``./bundles/sub-NN``, which `realtime serve` takes too where it is given none.
"""

from __future__ import annotations

from collections.abc import Callable

from nsd import Layout, Run
from realtime.bundle.locate import choose_bundle
from realtime.bundle.match import read_spec
from realtime.bundle.spec import Spec
from realtime.bundle.trained_on import held_out_runs, trained_on
from realtime.errors import RealtimeError
from sim.recording import default_run_id


def choose_run(
    layout: Layout, subject: int, session: int | None, run: int | None, tell: Callable[[str], None]
) -> tuple[int, int]:
    """Session and run; without a run, the first one of the data set that was held out, else run 1."""
    spec = _spec(subject) if run is None else None
    for of_session, number in (held_out_runs(spec) if spec else None) or ():
        if session in (None, of_session) and layout.timeseries(subject, of_session, number).is_file():
            tell(f"session {of_session}, run {number}: held out by the bundle in bundles/sub-{subject:02d}")
            return of_session, number
    return session or 1, run or 1


def warn_of_training(run: Run, tell: Callable[[str], None]) -> None:
    """Say so if the subject's bundle may have been trained on a run, whatever it is called on the way."""
    spec = _spec(run.subject)
    if spec and (said := trained_on(spec, default_run_id(run))):
        tell(f"bundles/sub-{run.subject:02d}: {said}")


def _spec(subject: int) -> Spec | None:
    """The spec of the subject's bundle in this folder; None where there is none."""
    try:
        folder, is_demo = choose_bundle(None, subject)
        return None if is_demo else read_spec(folder)[0]
    except RealtimeError:
        return None
