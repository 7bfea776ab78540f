"""What listeners are told of the run that is open, or was open last. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from realtime.bundle.decoding_quality import is_near_chance, quality_in_words
from realtime.bundle.spec import Spec
from realtime.events import Counts, State, Status
from realtime.record.run_json import begins_with, decoders_of, resampling_in_words

if TYPE_CHECKING:
    from realtime.runs.run import Run

STALE_TR = 3
"""An open run is stale when no volume came for more than this many TR."""


def run_state(run: Run | None, *, is_open: bool, silent_s: float) -> State:
    """The state of a run.

    :param silent_s: time since its scanner was last heard
    """
    if run is None:
        return "waiting"
    if not is_open:
        return "ended"
    if run.position is None:
        return "waiting"
    if silent_s > STALE_TR * run.start.tr_s:
        return "stale"
    return "trusted" if run.trusted else "warming"


def status_of(
    run: Run | None, state: State, message: str, alarm: str, spec: Spec, sha256: str, *, is_demo: bool
) -> Status:
    """The snapshot that is sent to listeners.

    :param alarm: the recorder's, or that a run is not sealed
    :param sha256: the bundle's
    :param is_demo: whether the bundle is the shipped demo's
    """
    tr_s, decoders = (run.start.tr_s, run.folder.info.decoders) if run else (spec.tr_s, decoders_of(spec))
    return Status(
        state=state,
        run_id=run.name if run else None,
        subject=run.start.subject if run else None,
        volume=run.position if run else None,
        counts=run.account.counts if run else Counts(),
        tr_s=tr_s,
        decode_delay_s=(decoders[0].window_delay_volumes + 1) * tr_s,
        bundle_name=spec.name,
        bundle_sha256=sha256,
        bundle_is_demo=is_demo,
        decoders=decoders,
        run_folder=str(run.folder.path) if run else None,
        decoding_quality=quality_in_words(spec),
        is_near_chance=is_near_chance(spec),
        quality=run.region.quality if run else None,
        statistics=begins_with(run.folder.info) if run else "",
        resampling=resampling_in_words(run.folder.info) if run else "",
        alarm=alarm or (run.alarm or run.region.alarm or run.triggers.alarm if run else ""),
        message=message,
    )
