"""The account of every volume, in virtual time: any arrivals, gaps, duplicates, delays and crashes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.bundle.bundle import Bundle
from realtime.events import STATES
from realtime.record.reader import read_recorded
from realtime.report.summary import summarize
from realtime.runs.account import Account
from realtime.runs.queue import NewestWins, Ready
from realtime.runs.run import Run

from .conftest import Scan
from .in_process import Lockstep

N_VOLUMES = 24
IMAGE = np.zeros((32, 32, 3), dtype=np.uint8)
STAGES_MS = {"brain": 1.0, "denoise": 2.0, "vae": 1.0}


class Rig:
    """A run whose clock and decoder belong to the test."""

    def __init__(self, out: Path, scan: Scan, bundle: Bundle) -> None:
        self.one = Lockstep.begin(out, bundle, scan.start)
        self.bundle = bundle
        self.scan = scan
        self.now_s = 0.0
        self.decoding: Ready | None = None
        self.arrived: set[int] = set()
        self.frames: list[int] = []

    @property
    def run(self) -> Run:
        return self.one.run

    def arrive(self, index: int) -> None:
        is_new = self.one.volume(self.scan.volume(index), self.scan.voxels(index).tobytes(), self.now_s)
        assert is_new == (index not in self.arrived)
        self.arrived.add(index)
        self.begin_decode()

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.run.expire(self.now_s)
        self.begin_decode()

    def begin_decode(self) -> None:
        if self.decoding is None:
            self.decoding = self.run.queue.take()

    def end_decode(self) -> None:
        if self.decoding is not None:
            frame = self.run.frame(self.decoding, self.bundle.decoder(), "ddim-4", STAGES_MS)
            self.run.record(frame, IMAGE, 0)
            self.frames.append(self.decoding.volume)
            self.decoding = None
            self.begin_decode()

    def crash(self, bundle: Bundle) -> None:
        before = {i: self.run.account.state_of(i) for i in range(N_VOLUMES)}
        self.one.let_go()
        self.one = Lockstep.reopen(self.one.path, bundle)
        self.one.scanner_is_back(self.now_s)
        self.decoding = None
        after = {i: self.run.account.state_of(i) for i in range(N_VOLUMES)}
        assert all(after[i] == state for i, state in before.items() if state is not None)
        assert {i for first, stop in self.one.journal.held for i in range(first, stop)} == self.arrived
        self.begin_decode()

    def finish(self) -> None:
        self.one.end()
        self.begin_decode()
        while self.decoding:
            self.end_decode()
        self.one.close()


actions = st.lists(
    st.one_of(
        st.tuples(st.just("next"), st.integers(1, 4)),
        st.tuples(st.just("arrive"), st.integers(0, N_VOLUMES - 1)),
        st.tuples(st.just("wait"), st.floats(0, 5)),
        st.tuples(st.just("end decode"), st.none()),
        st.tuples(st.just("crash"), st.none()),
    ),
    max_size=30,
)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@settings(max_examples=40, deadline=None)
@given(actions=actions)
def test_every_volume_ends_in_one_state_whatever_happens(
    actions: list[tuple[str, Any]], bundle: Bundle, make_scan: type[Scan]
) -> None:
    scan = make_scan(n_volumes=N_VOLUMES)
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder), scan, bundle)
        for name, value in actions:
            if name == "next":
                for index in range(len(rig.arrived), min(len(rig.arrived) + value, N_VOLUMES)):
                    rig.arrive(index)
            elif name == "arrive":
                rig.arrive(value)
            elif name == "wait":
                rig.wait(value)
            elif name == "end decode":
                rig.end_decode()
            else:
                rig.crash(bundle)
        rig.finish()
        counts = rig.run.account.counts
        assert rig.run.account.open_volumes == []
        assert sum(getattr(counts, state) for state in STATES) == counts.planned == N_VOLUMES
        assert counts.received == len(rig.arrived)
        assert counts.missing >= N_VOLUMES - len(rig.arrived)
        assert rig.frames == sorted(set(rig.frames))
        summary = summarize(read_recorded(rig.run.folder.path))
        assert {state: getattr(summary, state) for state in STATES} == {
            state: getattr(counts, state) for state in STATES
        }
        assert summary.received == counts.received


def test_in_order_with_a_fast_decoder_nothing_is_skipped(
    bundle: Bundle, make_scan: type[Scan], tmp_path: Path
) -> None:
    scan = make_scan(n_volumes=N_VOLUMES)
    rig = Rig(tmp_path, scan, bundle)
    for index in range(N_VOLUMES):
        rig.arrive(index)
        rig.end_decode()
    rig.finish()
    assert rig.frames == list(range(5, N_VOLUMES))  # a window is six volumes long
    assert rig.run.account.counts.skipped == 0
    assert rig.run.account.counts.warming == 11  # the bundle trusts from its twelfth volume on


def test_of_the_windows_that_wait_only_the_newest_is_decoded(
    bundle: Bundle, make_scan: type[Scan], tmp_path: Path
) -> None:
    scan = make_scan(n_volumes=N_VOLUMES)
    rig = Rig(tmp_path, scan, bundle)
    for index in range(20):
        rig.arrive(index)
    rig.end_decode()  # of volume 5; 6 to 18 were replaced meanwhile
    rig.finish()
    assert rig.frames == [5, 19]
    rows = {row.volume: row for row in read_recorded(rig.run.folder.path).rows}
    assert all(rows[volume].state == "skipped" for volume in range(6, 19))
    assert rows[6].reason == "a newer window was ready before its decode began"


def test_after_a_crash_the_statistics_are_those_of_an_unbroken_run(
    bundle: Bundle, make_scan: type[Scan], tmp_path: Path
) -> None:
    scan = make_scan(n_volumes=N_VOLUMES)
    windows = []
    for crashes in (False, True):
        rig = Rig(tmp_path / str(crashes), scan, bundle)
        for index in range(N_VOLUMES - 1):
            rig.arrive(index)
            rig.end_decode()
            if crashes and index in (7, 15):
                rig.crash(bundle)
        rig.arrive(N_VOLUMES - 1)
        assert rig.decoding is not None
        windows.append(rig.decoding.window)
        rig.finish()
    assert windows[0].tobytes() == windows[1].tobytes()


def test_a_state_is_final() -> None:
    account = Account(3)
    account.settle(1, "missing")
    with pytest.raises(ValueError, match="already missing"):
        account.settle(1, "decoded")
    with pytest.raises(ValueError, match="expected a volume in"):
        account.settle(3, "decoded")


def test_a_volume_comes_once() -> None:
    account = Account(10)
    for index in (4, 0, 1, 5, 9):
        assert account.receive(index)
    assert not account.receive(4)
    assert account.newest == 9
    assert account.counts.received == 5


def test_held_volumes_are_told_as_ranges(make_scan: type[Scan], bundle: Bundle, tmp_path: Path) -> None:
    scan = make_scan(n_volumes=10)
    one = Lockstep.begin(tmp_path, bundle, scan.start)
    for index in (4, 0, 1, 5, 9):
        one.volume(scan.volume(index), scan.voxels(index).tobytes(), 0.0)
    assert one.journal.held == [(0, 2), (4, 6), (9, 10)]
    one.let_go()


def test_only_the_newest_window_waits() -> None:
    queue: NewestWins[str] = NewestWins()
    assert not queue.is_waiting
    assert queue.offer("a") is None
    assert queue.take() == "a"
    assert queue.take() is None
    assert queue.offer("b") is None
    assert queue.offer("c") == "b"
    assert queue.is_waiting
    assert queue.take() == "c"
    assert not queue.is_waiting
