"""Presentation software's count of triggers against the volumes that come, in a simulated scan's own time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.record.reader import read_recorded
from realtime.runs.status import status_of
from realtime.runs.triggers import BASELINE, IN_A_ROW, TriggerCount

from .serving.conftest import Scan, picture_png
from .serving.in_process import Lockstep

TR_S = 1.5
EVERY = 3
"""Volumes from picture to picture."""
N_VOLUMES = 150
RIGHT = "fits the volumes again"


@dataclass
class Session:
    """A scan, and presentation software that counts its triggers."""

    latency_tr: float = 0.4
    jitter_tr: float = 0.0
    """Of volumes and markers, above their usual latency."""
    phase_tr: float | None = 0.02
    """When after a trigger pictures appear; None: at any time."""
    delay_tr: float = 0.05
    """Of markers."""
    header_tr_s: float = TR_S
    """What the scanner's header says of the TR."""
    miscounts: dict[int, int] = field(default_factory=dict)
    """From which volume on the count is off by how many, in all."""
    stalls: dict[int, float] = field(default_factory=dict)
    """Volumes that are late by so many TR; they come together with those after them."""
    seed: int = 0

    def messages(self) -> Iterator[tuple[float, wire.ToRuntime]]:
        """All of it, in the order in which it comes."""
        rng = np.random.default_rng(self.seed)
        came, latest = [], 0.0
        for index in range(N_VOLUMES):
            late = self.latency_tr + rng.uniform(0, self.jitter_tr) + self.stalls.get(index, 0.0)
            latest = max(latest, (index + 1 + late) * TR_S)
            message: wire.ToRuntime = wire.Volume(run_id="run", index=index, acquired_s=0.0)
            came.append((latest, message))
        for index in range(2, N_VOLUMES, EVERY):
            phase = rng.uniform(0, 1) if self.phase_tr is None else self.phase_tr
            late = self.delay_tr + rng.uniform(0, self.jitter_tr)
            off = next(
                (off for first, off in sorted(self.miscounts.items(), reverse=True) if index >= first), 0
            )
            message = wire.Marker(run_id="run", onset_volume=index, name="", triggers=max(0, index + 1 + off))
            came.append(((index + phase + late) * TR_S, message))
        return iter(sorted(came, key=lambda each: each[0]))

    def said(self) -> list[tuple[int, str]]:
        """What the operator is told, and at which onset."""
        count = TriggerCount(self.header_tr_s)
        told = []
        for time_s, message in self.messages():
            if said := count.take(message, 1e9 + time_s):
                assert isinstance(message, wire.Marker)
                told.append((message.onset_volume, said))
        return told


@settings(max_examples=60, deadline=None)
@given(
    latency_tr=st.floats(0, 1.9),
    jitter_tr=st.floats(0, 0.2),
    phase_tr=st.floats(0, 0.7),
    delay_tr=st.floats(0, 0.5),
    seed=st.integers(0, 100),
)
def test_a_count_that_is_right_is_never_an_alarm(
    latency_tr: float, jitter_tr: float, phase_tr: float, delay_tr: float, seed: int
) -> None:
    session = Session(
        latency_tr=latency_tr, jitter_tr=jitter_tr, phase_tr=phase_tr, delay_tr=delay_tr, seed=seed
    )
    assert session.said() == []


@pytest.mark.parametrize(
    "session",
    [
        *(Session(phase_tr=None, seed=seed) for seed in range(20)),
        Session(header_tr_s=1.01 * TR_S),
        Session(stalls={60: 4.0}),
        Session(stalls=dict.fromkeys(range(60, 150, 10), 1.5)),
    ],
    ids=lambda session: f"{session.phase_tr}-{session.header_tr_s}-{len(session.stalls)}-{session.seed}",
)
def test_pictures_at_any_time_a_rounded_tr_and_late_volumes_are_no_alarm(session: Session) -> None:
    assert session.said() == []


@pytest.mark.parametrize("latency_tr", [0.0, 0.4, 1.2])
@pytest.mark.parametrize(("off", "words"), [(-1, "1 too few"), (1, "1 too many"), (-2, "2 too few")])
def test_a_trigger_that_is_missed_or_counted_twice_is_an_alarm_within_a_few_pictures(
    latency_tr: float, off: int, words: str
) -> None:
    told = Session(latency_tr=latency_tr, jitter_tr=0.1, miscounts={62: off}).said()
    ((onset, said),) = told
    assert words in said
    assert "onsets from about here on are probably shifted" in said
    assert 62 <= onset <= 62 + (IN_A_ROW + 1) * EVERY


def test_a_missed_trigger_is_found_whenever_pictures_appear() -> None:
    told = [Session(phase_tr=None, miscounts={62: -1}, seed=seed).said() for seed in range(20)]
    assert sum(bool(each) for each in told) >= 18
    assert all(onset >= 62 for onset, _ in itertools.chain(*told))


@pytest.mark.parametrize("off", [-3, 5, 10])
def test_a_count_that_was_wrong_from_the_first_is_an_alarm(off: int) -> None:
    """Dummy scans that were counted, or triggers before the software listened."""
    ((onset, said),) = Session(miscounts={0: off}).said()
    assert f"{abs(off)} too {'many' if off > 0 else 'few'}" in said
    assert onset <= 2 + (IN_A_ROW + BASELINE) * EVERY


def test_an_alarm_is_over_when_the_count_is_right_again() -> None:
    (_, first), (onset, second) = Session(miscounts={62: -1, 92: 0}).said()
    assert "too few" in first
    assert RIGHT in second
    assert onset >= 92


def test_a_marker_without_a_count_is_the_message_of_before() -> None:
    marker = wire.Marker(run_id="run", onset_volume=3, name="a face")
    assert b"triggers" not in wire.encode(marker)
    assert wire.decode_to_runtime(wire.encode(marker)) == marker
    counted = wire.Marker(run_id="run", onset_volume=3, name="a face", triggers=4)
    assert wire.decode_to_runtime(wire.encode(counted)) == counted


def test_markers_without_a_count_or_after_a_break_are_not_compared() -> None:
    count = TriggerCount(TR_S)
    marker = wire.Marker(run_id="run", onset_volume=0, name="")
    assert count.take(marker, 0.0) == ""
    for index, time_s in enumerate((2.0, 3.5, 5.0)):
        count.take(wire.Volume(run_id="run", index=index, acquired_s=0.0), time_s)
    for onset in range(10, 20):
        counted = wire.Marker(run_id="run", onset_volume=onset, name="", triggers=onset)
        assert count.take(counted, 100.0 + onset) == ""
    assert count.alarm == ""


# In a run


def test_a_shift_is_an_alarm_on_the_page_in_the_log_and_once_in_the_runs_notes(
    tiny_bundle: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = Bundle.open(tiny_bundle)
    scan = Scan(n_volumes=N_VOLUMES, changes={"tr_s": 4 / 3})
    run = Lockstep.begin(tmp_path, bundle, scan.start)
    session = Session(miscounts={62: -1})
    messages = [(time_s * 4 / 3 / TR_S, message) for time_s, message in session.messages()]

    def send(some: list[tuple[float, wire.ToRuntime]], run: Lockstep) -> None:
        for time_s, message in some:
            if isinstance(message, wire.Volume):
                run.volume(scan.volume(message.index), scan.voxels(message.index).tobytes(), time_s)
            elif isinstance(message, wire.Marker):
                marker = wire.Marker(
                    run_id=scan.run_id, onset_volume=message.onset_volume, name="", triggers=message.triggers
                )
                run.marker(marker, picture_png(message.onset_volume), time_s)

    def alarm(run: Lockstep) -> str:
        return status_of(run.run, "warming", "", "", bundle.spec, bundle.sha256, is_demo=False).alarm

    half = len(messages) // 3
    send(messages[:half], run)
    assert alarm(run) == ""
    send(messages[half:-20], run)
    assert "1 too few" in alarm(run)
    assert "1 too few" in caplog.text
    run.let_go()
    run = Lockstep.reopen(run.path, bundle)
    assert "1 too few" in alarm(run)  # the next decoder has it from the journal
    send(messages[-20:], run)
    run.end()
    run.close()
    notes = read_recorded(run.path).info.notes
    assert sum("1 too few" in note for note in notes) == 1
