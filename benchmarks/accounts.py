"""The account of a run that was sent: what came of every volume, against what its sender knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from senders import Sent, Way

from realtime import wire
from realtime.record.journal import read_journal
from realtime.record.reader import read_recorded
from sim.faults import FaultyScan, Plan, late_tr

AFFINE_MM = 1e-3
"""Headers round."""
Values = NDArray[np.float64]


def _values(start: wire.RunStart, payload: bytes | memoryview) -> Values:
    return wire.volume_array(start, payload).astype(np.float64)


def account(
    expected: Mapping[int, Values],
    held: Mapping[int, Values],
    states: Mapping[int, str],
    *,
    may_be_lost: Set[int],
    may_be_missing: Set[int],
) -> dict[str, list[int]]:
    """Return the volumes that break each rule of the account; it adds up where there are none.

    :param expected: the volumes that were sent
    :param held: those in the journal
    :param states: of all planned volumes
    :param may_be_lost: those that a crash may have taken, or spoilt
    :param may_be_missing: those that may have come after they were given up
    """
    missing = {index for index, state in states.items() if state == "missing"}
    absent = states.keys() - held.keys()
    broken = {
        "came and was not sent": held.keys() - expected.keys() - may_be_lost,
        "was sent and is lost": expected.keys() - held.keys() - may_be_lost,
        "has other values than were sent": {
            index
            for index in held.keys() & expected.keys() - may_be_lost
            if not np.array_equal(held[index], expected[index], equal_nan=True)
        },
        "did not come and is not missing": absent - missing,
        "came in time and is missing": missing - absent - may_be_missing,
    }
    return {rule: sorted(indices) for rule, indices in broken.items()}


def check(
    way: Way, scan: FaultyScan, plan: Plan, sent: Sent, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """Account for a run; return what was found, and the checks that failed."""
    recorded = read_recorded(folder)
    start, n_volumes = recorded.info.start, scan.start.n_volumes
    places = sent.order if way.is_numbered else range(len(sent.order))
    sent_as = dict(zip(places, sent.order, strict=True))
    expected = {place: _values(scan.start, scan.volume(index)) for place, index in sent_as.items()}
    held = {index: _values(start, payload) for index, payload in _volumes(folder)}
    states = {row.volume: row.state for row in recorded.rows}
    lost = expected.keys() - held.keys()
    is_prefix = held.keys() == set(range(len(held)))
    broken = account(
        expected,
        held,
        states,
        may_be_lost=lost if sent.is_cut and is_prefix else sent.may_be_lost,
        may_be_missing={index for index, tr in late_tr(plan, n_volumes).items() if tr > 0},
    )
    seen = {index for index in held if states.get(index) != "missing"}
    unregistered = {index for index in seen if not np.isfinite(recorded.quality["trans_x"][index])}
    spoilt = {index for index, fault in plan.items() if fault.kind in ("nan", "spike")}
    broken["is not registered"] = sorted(unregistered - spoilt)
    failed = [f"{rule}: {indices}" for rule, indices in broken.items() if indices]
    if recorded.info.state != "closed":
        failed.append("the run is not closed")
    if sorted(row.volume for row in recorded.rows) != list(range(n_volumes)):
        failed.append("not every planned volume has one state")
    if np.abs(np.array(start.affine) - np.array(scan.start.affine)).max() > AFFINE_MM:
        failed.append(f"the affine is not the scanner's: {start.affine}")
    found = {
        "states": dict(Counter(states.values())),
        "lost": sorted(lost),
        "not_sent": n_volumes - len(expected),
        "late_for_want_of_a_core": len(sent.may_be_lost - lost),
        "unregistered": len(unregistered),
    }
    return found, failed


def _volumes(folder: Path) -> Iterator[tuple[int, bytes]]:
    for entry in read_journal(folder / "volumes.journal"):
        message = wire.decode_to_runtime(entry.header)
        if isinstance(message, wire.Volume):
            yield message.index, entry.payload
