"""What becomes of volumes when a scanner or its connection fails in each of the ways that `sim` can make."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.errors import WireError
from realtime.events import STATES
from realtime.record.reader import Recorded, read_recorded
from sim.faults import KINDS, Fault, FaultyLink, FaultyScan, Kind, draw_plan, late_tr
from sim.scanner import Scanner
from sim.sender import Sender

from .conftest import Scan, Served, closed
from .in_process import Lockstep

N_VOLUMES = 40
IMAGE = np.zeros((32, 32, 3), dtype=np.uint8)
STAGES_MS = {"brain": 1.0, "denoise": 2.0, "vae": 1.0}
PATIENCE_S = 300.0


class Pictured:
    """A test's run as the scanner reads it."""

    def __init__(self, scan: Scan) -> None:
        self.start = scan.start
        self._scan = scan

    def volume(self, index: int) -> bytes:
        return self._scan.voxels(index).tobytes()

    def picture_png(self, onset_volume: int) -> bytes:
        raise AssertionError("no marker is sent")


class Runtime:
    """A run at the other end of a link. Time passes only while the scanner waits; decodes take none."""

    def __init__(self, bundle: Bundle, out: Path) -> None:
        self.now_s = 0.0
        self.acknowledged: set[int] = set()
        self.refusals: list[str] = []
        self.one: Lockstep | None = None
        self.duplicates = 0
        self._bundle = bundle
        self._out = out
        self._replies: deque[wire.ToScanner] = deque()

    def clock(self) -> float:
        return self.now_s

    def send(self, header: bytes, buffer: bytes) -> None:
        try:
            reply = self._answer(wire.decode_to_runtime(header), buffer)
        except WireError as error:
            self.refusals.append(error.code)
            reply = wire.Refused(run_id="", code=error.code, message=str(error))
        self._replies.append(reply)

    def receive(self, timeout_s: float) -> bytes | None:
        if self._replies:
            return wire.encode(self._replies.popleft())
        self.now_s += timeout_s
        if self.one:
            self.one.run.expire(self.now_s)
            self._decode()
        return None

    def reconnect(self) -> None:
        self._replies.clear()

    def _answer(self, message: wire.ToRuntime, buffer: bytes) -> wire.ToScanner:
        run_id = message.run_id
        if isinstance(message, wire.RunStart):
            self.one = self.one or Lockstep.begin(self._out, self._bundle, message)
            self.one.scanner_is_back(self.now_s)
            return wire.RunAccepted(run_id=run_id, held=self.one.journal.held)
        assert self.one
        if run_id != self.one.run.start.run_id:
            raise WireError("no-run", "expected a message of an open run")
        if isinstance(message, wire.Volume):
            wire.verify_checksum(message, memoryview(buffer))
            if not self.one.volume(message, buffer, self.now_s):
                self.duplicates += 1
            self.acknowledged.add(message.index)
            self._decode()
            return wire.Ack(run_id=run_id, index=message.index)
        self.one.end()
        self._decode()
        self.one.close()
        return wire.RunClosed(run_id=run_id)

    def _decode(self) -> None:
        assert self.one
        run = self.one.run
        while ready := run.queue.take():
            frame = run.frame(ready, self._bundle.decoder(), "ddim-4", STAGES_MS)
            run.record(frame, IMAGE, 0)


def scanned(bundle: Bundle, scan: Scan, plan: dict[int, Fault]) -> tuple[Runtime, Recorded]:
    """A run with these faults from its start to its end, and its folder."""
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(bundle, Path(folder))
        spoilt = FaultyScan(Pictured(scan), plan)
        sender = Sender(spoilt.start, [], speed=1.0, late_tr=late_tr(plan, scan.n_volumes))
        link = FaultyLink(runtime, plan)
        assert Scanner(spoilt, link, sender, tell=lambda _: None, clock=runtime.clock).replay()
        assert runtime.one
        return runtime, read_recorded(runtime.one.path)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.mark.parametrize(
    ("kind", "late", "states"),
    [
        ("drop", 0.0, {20: "missing", 21: "skipped"}),  # two volumes wait behind the gap, the newest wins
        ("delay", 2.9, {20: "skipped", 21: "skipped"}),
        ("delay", 3.1, {20: "missing", 21: "skipped"}),  # its gap was given up 2 TR after the next came
        ("reorder", 1.25, {20: "skipped", 21: "decoded"}),
        ("stall", 6.5, {}),
        ("nan", 0.0, {20: "censored"}),
        ("spike", 0.0, {20: "censored"}),
        ("corrupt", 0.0, {}),
        ("duplicate", 0.0, {}),
        ("disconnect", 0.0, {}),
    ],
)
def test_a_fault_ends_in_the_state_that_it_should(
    kind: Kind, late: float, states: dict[int, str], bundle: Bundle, make_scan: type[Scan]
) -> None:
    """``states``: those of volumes from 20 on that are not decoded as if nothing had been."""
    scan = make_scan(n_volumes=N_VOLUMES)
    runtime, recorded = scanned(bundle, scan, {20: Fault(kind=kind, late_tr=late, seed=5)})
    found = {row.volume: row.state for row in recorded.rows}
    assert found == {i: "warming" if i < 11 else states.get(i, "decoded") for i in range(N_VOLUMES)}
    assert (
        recorded.received
        == runtime.acknowledged
        == set(range(N_VOLUMES)) - ({20} if kind == "drop" else set())
    )
    assert runtime.refusals == (["checksum"] if kind == "corrupt" else [])
    assert runtime.duplicates == (kind == "duplicate")


@settings(max_examples=15, deadline=None)
@given(
    rates=st.dictionaries(st.sampled_from(KINDS), st.floats(0, 1 / len(KINDS)), min_size=1),
    seed=st.integers(0, 10_000),
)
def test_whatever_goes_wrong_every_volume_is_accounted_and_none_that_was_acknowledged_is_lost(
    rates: dict[Kind, float], seed: int, bundle: Bundle, make_scan: type[Scan]
) -> None:
    scan = make_scan(n_volumes=N_VOLUMES)
    plan = draw_plan(rates, seed, scan.start)
    runtime, recorded = scanned(bundle, scan, plan)
    states = {row.volume: row.state for row in recorded.rows}
    assert sorted(states) == list(range(N_VOLUMES))
    assert set(states.values()) <= set(STATES)
    dropped = {index for index, fault in plan.items() if fault.kind == "drop"}
    assert recorded.received == runtime.acknowledged == set(range(N_VOLUMES)) - dropped
    for index, fault in plan.items():
        if fault.kind == "drop":
            assert states[index] == "missing"
        if fault.kind == "nan" or (fault.kind == "spike" and len(plan) < 4 and index > 20):
            assert states[index] in ("censored", "missing")
    late = {index for index, state in states.items() if state == "missing"} - dropped
    assert all(late_tr(plan, N_VOLUMES).get(index, 0) > 1 for index in late)


def test_a_spoilt_run_over_a_socket_is_accounted_and_none_that_was_acknowledged_is_lost(
    serve: Callable[..., Served], tiny_nsd: Path, account_of: Callable[[Path], dict[str, Any]]
) -> None:
    served = serve()
    rates: dict[Kind, float] = {"drop": 0.01, "delay": 0.02, "reorder": 0.02, "stall": 0.01, "nan": 0.02}
    rates |= {"spike": 0.02, "corrupt": 0.05, "duplicate": 0.05, "disconnect": 0.02}
    command = [sys.executable, "-m", "sim", "replay", "--nsd", str(tiny_nsd), "--connect", served.address]
    options = [word for kind, rate in rates.items() for word in ("--fault", f"{kind}={rate}")]
    command += ["--speed", "40", "--fault-seed", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    folder = closed(served.out / "sub-01_ses-nsd01_task-nsdcore_run-01")
    assert served.interrupt() == 0
    recorded, summary = read_recorded(folder), account_of(folder)
    plan = draw_plan(rates, 1, recorded.info.start)
    assert {fault.kind for fault in plan.values()} == set(KINDS)
    states = {row.volume: row.state for row in recorded.rows}
    dropped = {index for index, fault in plan.items() if fault.kind == "drop"}
    assert recorded.received == set(range(225)) - dropped
    assert {index for index, state in states.items() if state == "missing"} >= dropped
    assert all(
        states[index] in ("censored", "missing") for index, fault in plan.items() if fault.kind == "nan"
    )
    assert f"drop: {len(dropped)} volumes, {', '.join(map(str, sorted(dropped)))}" in done.stderr
    assert summary["received"] == 225 - len(dropped)
