from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsd import Layout
from realtime import wire
from realtime.errors import WireError
from sim.errors import SimError
from sim.faults import KINDS, Fault, FaultyLink, FaultyScan, Kind, describe, draw_plan, late_tr, parse_rates
from sim.recording import Recording

from .conftest import Tiny
from .test_sender import run_start

ALL = {kind: 0.05 for kind in KINDS}


@pytest.fixture(scope="module")
def recording(tiny: Tiny) -> Iterator[Recording]:
    with Recording(Layout(tiny.root), subject=1, session=1, run=1) as found:
        yield found


class Wire:
    """A link that stores sent messages."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes] | None] = []
        """Sent messages; None stands for a reconnect."""

    def send(self, header: bytes, buffer: bytes) -> None:
        self.sent.append((header, buffer))

    def receive(self, timeout_s: float) -> bytes | None:
        return None

    def reconnect(self) -> None:
        self.sent.append(None)


def fault(kind: Kind, seed: int = 7, late_tr: float = 0.0) -> Fault:
    return Fault(kind=kind, late_tr=late_tr, seed=seed)


def test_a_plan_is_a_function_of_seed_and_run() -> None:
    plan = draw_plan(ALL, 3, run_start(225))
    assert plan == draw_plan(dict(reversed(ALL.items())), 3, run_start(225))
    assert plan != draw_plan(ALL, 4, run_start(225))
    assert draw_plan(ALL, 3, run_start(100)) == {index: plan[index] for index in plan if index < 100}
    assert draw_plan({}, 3, run_start(225)) == {}
    # Golden: a seed that a report names makes the same faults in every release.
    assert [(index, plan[index].kind) for index in sorted(plan)[:5]] == GOLDEN


GOLDEN = [(0, "corrupt"), (2, "reorder"), (3, "duplicate"), (5, "corrupt"), (9, "reorder")]


def test_rates_are_probabilities() -> None:
    rates: dict[Kind, float] = {"drop": 0.1, "spike": 0.3}
    plan = draw_plan(rates, 0, run_start(10_000))
    counts = Counter(each.kind for each in plan.values())
    assert counts.keys() == rates.keys()
    for kind, rate in rates.items():
        assert abs(counts[kind] - 10_000 * rate) < 4 * math.sqrt(10_000 * rate)
    assert set(draw_plan({"nan": 1.0}, 0, run_start(50))) == set(range(50))


def test_rates_are_read_from_a_command_line() -> None:
    assert parse_rates(["drop=0.01", "delay=.05"]) == {"drop": 0.01, "delay": 0.05}
    for bad in ("drop", "drop=", "drop=2", "drop=nan", "lose=0.1", "drop=-0.1"):
        with pytest.raises(SimError, match="expected one of drop, delay"):
            parse_rates([bad])
    with pytest.raises(SimError, match="sum to at most 1"):
        parse_rates(["drop=0.6", "nan=0.6"])


def test_the_plan_is_described() -> None:
    plan = {4: fault("drop"), 2: fault("drop"), 9: fault("nan")}
    assert describe(plan) == ["drop: 2 volumes, 2, 4", "nan: 1 volumes, 9"]


def test_a_stall_delays_all_volumes_during_it() -> None:
    plan = {3: fault("stall", late_tr=4.5), 5: fault("delay", late_tr=0.5), 8: fault("drop")}
    late = late_tr(plan, 7)
    assert late == {3: 4.5, 4: 3.5, 5: 2.5, 6: 1.5, 8: math.inf}


def test_slices_of_a_volume_are_not_a_number_and_the_others_are_as_recorded(recording: Recording) -> None:
    scan = FaultyScan(recording, {5: fault("nan")})
    assert (recording.start.dtype, scan.start.dtype) == ("int16", "float32")
    for index in (4, 5):
        voxels = wire.volume_array(scan.start, scan.volume(index))
        recorded = wire.volume_array(recording.start, recording.volume(index))
        is_nan = np.isnan(voxels).all(axis=(0, 1))
        assert is_nan.sum() == (3 if index == 5 else 0)  # of 8 slices
        assert np.array_equal(voxels[..., ~is_nan], recorded[..., ~is_nan])
    assert scan.picture_png(recording.markers[0].onset_volume)


def test_a_spike_makes_slices_brighter_and_dimmer_in_turn(recording: Recording) -> None:
    scan = FaultyScan(recording, {5: fault("spike")})
    assert scan.start == recording.start
    recorded = wire.volume_array(recording.start, recording.volume(5)).astype(float)
    struck = wire.volume_array(scan.start, scan.volume(5))
    brain = recorded.mean(axis=(0, 1)) > 0
    ratio = struck.sum(axis=(0, 1))[brain] / recorded.sum(axis=(0, 1))[brain]
    assert np.allclose(np.abs(ratio - 1), 0.2, atol=0.01)
    assert (np.diff(np.sign(ratio - 1)) != 0).all()
    assert scan.volume(6) == recording.volume(6)


def read_volume(header: bytes) -> wire.Volume:
    volume = wire.decode_to_runtime(header)
    assert isinstance(volume, wire.Volume)
    return volume


@given(seed=st.integers(0, 2**32 - 1))
def test_a_corrupted_volume_is_always_detected(seed: int) -> None:
    link = Wire()
    buffer = bytes(range(64))
    sent = wire.with_checksum(wire.Volume(run_id="sub-01", index=3, acquired_s=5.25), buffer)
    FaultyLink(link, {3: fault("corrupt", seed)}).send(wire.encode(sent), buffer)
    (message,) = link.sent
    assert message is not None
    header, changed = message
    assert (header, changed) != (wire.encode(sent), buffer)
    with pytest.raises(WireError) as caught:
        wire.verify_checksum(read_volume(header), changed)
    assert caught.value.code in ("header", "version", "checksum")


def test_faults_of_messages_apply_only_once() -> None:
    link = Wire()
    faulty = FaultyLink(link, {1: fault("duplicate"), 2: fault("disconnect")})
    messages = [wire.encode(wire.Volume(run_id="r", index=index, acquired_s=1.0)) for index in range(3)]
    for _ in range(2):
        for header in messages:
            faulty.send(header, b"")
    zero, one, two = ((header, b"") for header in messages)
    assert link.sent == [zero, one, one, None, zero, one, two]
    start = wire.encode(run_start(3))
    faulty.send(start, b"")
    assert link.sent[-1] == (start, b"")
