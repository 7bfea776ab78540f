"""Starts and ends of runs are derived from volumes, whatever a scanner sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.errors import ServeError
from realtime.network.key_files import own_server_keys
from realtime.sources.open import SourceOptions, open_source
from realtime.sources.run_boundaries import Plan, RunBoundarySource, RunOver, Scan
from realtime.sources.zeromq import ZeroMqSource

SHAPE = (2, 2, 2)
AFFINE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
PLAN = Plan(subject=1, run_id="sub-01_task-realtime", n_volumes=4, tr_s=50.0)
SHORT_TR_S = 0.01


class Scanner:
    """Sends what a test puts into its queue."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Scan | RunOver] = asyncio.Queue()
        self.told: list[tuple[int, str]] = []

    async def start(self) -> str:
        return "a scanner"

    async def scans(self) -> AsyncIterator[Scan | RunOver]:
        while True:
            yield await self.queue.get()

    async def stop(self) -> None:
        pass

    def send(self, index: int, seed: int = 0, **changes: Any) -> None:
        voxels = np.random.default_rng((seed, index)).integers(0, 999, SHAPE).astype("<i2")

        async def answer(message: wire.Ack | wire.Refused) -> None:
            self.told.append((index, "ack" if isinstance(message, wire.Ack) else message.code))

        fields = {"shape": SHAPE, "affine": AFFINE, "dtype": "int16", "payload": memoryview(voxels.tobytes())}
        self.queue.put_nowait(
            Scan(index=index, received_s=perf_counter(), answer=answer, **(fields | changes))
        )


class Pipeline:
    """Answers like the pipeline, from the messages it receives only."""

    def __init__(
        self,
        source: RunBoundarySource,
        held: dict[str, set[int]],
        refuses: str = "",
        refuses_ends: int = 0,
    ) -> None:
        """``refuses``: code with which starts are refused; ``refuses_ends``: number of ends refused."""
        self.source = source
        self.heard: list[str] = []
        self.held = held
        self._refuses = refuses
        self._refuses_ends = refuses_ends
        self._no_room_for = 0

    def has_no_room(self, times: int) -> None:
        """Refuse this number of starts and volumes."""
        self._no_room_for = times

    async def serve(self) -> None:
        while True:
            received = await self.source.receive()
            message = received.message
            if self._no_room_for and not isinstance(message, wire.RunEnd):
                self._no_room_for -= 1
                self.heard.append("no room")
                index = message.index if isinstance(message, wire.Volume) else None
                refused = wire.Refused(run_id=message.run_id, code="runtime", message="no room", index=index)
                await received.reply(refused)
            elif isinstance(message, wire.RunStart):
                self.heard.append(f"start {message.run_id}")
                await received.reply(self._accept(message))
            elif isinstance(message, wire.Volume):
                self.heard.append(f"volume {message.index}")
                self.held[message.run_id].add(message.index)
                await received.reply(wire.Ack(run_id=message.run_id, index=message.index))
            elif isinstance(message, wire.RunEnd):
                self.heard.append(message.reason)
                await received.reply(self._end(message.run_id))

    def _accept(self, start: wire.RunStart) -> wire.RunAccepted | wire.Refused:
        if self._refuses == "run-start" and start.run_id not in self.held:
            self._refuses = ""  # the run that began otherwise has been ended
        if self._refuses:
            return wire.Refused(run_id=start.run_id, code=self._refuses, message="no")
        held = self.held.setdefault(start.run_id, set())
        return wire.RunAccepted(run_id=start.run_id, held=[(index, index + 1) for index in sorted(held)])

    def _end(self, run_id: str) -> wire.RunClosed | wire.Refused:
        if self._refuses_ends:
            self._refuses_ends -= 1
            return wire.Refused(run_id=run_id, code="runtime", message="no room")
        del self.held[run_id]
        return wire.RunClosed(run_id=run_id)


@asynccontextmanager
async def serving(
    plan: Plan = PLAN, held: dict[str, set[int]] | None = None, **refusals: Any
) -> AsyncIterator[tuple[Scanner, Pipeline]]:
    scanner = Scanner()
    source = RunBoundarySource(scanner, plan)
    pipeline = Pipeline(source, held or {}, **refusals)
    task = asyncio.create_task(pipeline.serve())
    try:
        yield scanner, pipeline
    finally:
        task.cancel()
        await asyncio.wait([task])
        await source.stop()


async def assert_heard(pipeline: Pipeline, *heard: str) -> None:
    async with asyncio.timeout(60):
        while len(pipeline.heard) < len(heard):
            await asyncio.sleep(0)
    assert pipeline.heard == list(heard)


START = "start sub-01_task-realtime"
VOLUMES = [f"volume {index}" for index in range(4)]


def test_a_run_begins_with_its_first_volume_and_ends_with_its_last() -> None:
    async def run() -> None:
        async with serving() as (scanner, pipeline):
            for index in (0, 2, 1, 3, 0):
                scanner.send(index, seed=len(scanner.told) > 3)
            scanner.send(1)
            await assert_heard(
                pipeline, START, VOLUMES[0], VOLUMES[2], *VOLUMES[1::2], "complete", START, *VOLUMES[:2]
            )
            assert scanner.told == [(i, "ack") for i in (0, 2, 1, 3, 0, 1)]

    asyncio.run(run())


def test_volume_0_again_begins_another_run_only_with_other_voxels() -> None:
    async def run() -> None:
        async with serving() as (scanner, pipeline):
            for index, seed in ((0, 0), (1, 0), (0, 0), (0, 1)):
                scanner.send(index, seed)
            await assert_heard(pipeline, START, *VOLUMES[:2], VOLUMES[0], "aborted", START, VOLUMES[0])

    asyncio.run(run())


def test_a_run_of_another_series_begins_at_any_volume() -> None:
    async def run() -> None:
        async with serving() as (scanner, pipeline):
            scanner.send(0, series="7")
            scanner.send(1, series="8")
            await assert_heard(
                pipeline, f"{START}_series-7", VOLUMES[0], "aborted", f"{START}_series-8", VOLUMES[1]
            )

    asyncio.run(run())


def test_the_scanners_end_ends_a_run_and_is_ignored_without_one() -> None:
    async def run() -> None:
        async with serving() as (scanner, pipeline):
            scanner.queue.put_nowait(RunOver())
            scanner.send(0)
            scanner.queue.put_nowait(RunOver())
            scanner.send(3)
            scanner.queue.put_nowait(RunOver())
            await assert_heard(pipeline, START, VOLUMES[0], "aborted", START, VOLUMES[3], "complete")

    asyncio.run(run())


def test_after_its_last_volume_a_run_waits_only_some_tr_for_what_is_missing() -> None:
    async def run() -> None:
        async with serving() as (scanner, pipeline):
            scanner.send(0, tr_s=SHORT_TR_S)
            scanner.send(3, tr_s=SHORT_TR_S)
            await assert_heard(pipeline, START, VOLUMES[0], VOLUMES[3], "complete")

    asyncio.run(run())


def test_a_run_left_open_continues_unless_the_scanner_begins_again() -> None:
    async def run(first: int, *heard: str) -> None:
        async with serving(held={PLAN.run_id: {0, 1}}) as (scanner, pipeline):
            scanner.send(first)
            await assert_heard(pipeline, *heard)

    asyncio.run(run(2, START, VOLUMES[2]))
    asyncio.run(run(0, START, "aborted", START, VOLUMES[0]))


def test_a_continued_run_ends_when_the_scanner_begins_again() -> None:
    """This runtime does not know the run's first volume, so it cannot compare it."""

    async def run(held: set[int]) -> None:
        async with serving(held={PLAN.run_id: held}) as (scanner, pipeline):
            for index, seed in ((2, 0), (0, 1), (1, 1)):
                scanner.send(index, seed)
            await assert_heard(pipeline, START, VOLUMES[2], "aborted", START, VOLUMES[0], VOLUMES[1])

    asyncio.run(run({0, 1}))


def test_a_late_first_volume_belongs_to_its_run() -> None:
    async def run() -> None:
        async with serving() as (scanner, pipeline):
            for index in (1, 2, 0, 3):
                scanner.send(index)
            await assert_heard(pipeline, START, VOLUMES[1], VOLUMES[2], VOLUMES[0], VOLUMES[3], "complete")

    asyncio.run(run())


@pytest.mark.parametrize("n_before", [0, 1], ids=["at the start", "within the run"])
def test_temporarily_refused_messages_are_repeated_first_and_answered_once(n_before: int) -> None:
    async def run() -> None:
        async with serving() as (scanner, pipeline):
            for index in range(n_before):
                scanner.send(index, tr_s=SHORT_TR_S)
            before = [START, VOLUMES[0]][: 2 * n_before]
            await assert_heard(pipeline, *before)
            pipeline.has_no_room(3)
            scanner.send(n_before, tr_s=SHORT_TR_S)
            scanner.send(n_before + 1, tr_s=SHORT_TR_S)
            begun = [] if n_before else [START]
            await assert_heard(pipeline, *before, *["no room"] * 3, *begun, *VOLUMES[n_before : n_before + 2])
            assert scanner.told == [(index, "ack") for index in range(n_before + 2)]

    asyncio.run(run())


def test_a_run_that_was_left_open_with_another_plan_is_ended_for_the_new_one() -> None:
    """As after a restart of the runtime with another --volumes."""

    async def run() -> None:
        async with serving(held={PLAN.run_id: {0, 1}}, refuses="run-start") as (scanner, pipeline):
            scanner.send(2)
            await assert_heard(pipeline, START, "aborted", START, VOLUMES[2])

    asyncio.run(run())


ENDS_OFTEN = 4


@pytest.mark.parametrize("sent", [(0, 1, None, 0), (0, 1, 2, 3, 0)], ids=["the scanner's end", "complete"])
def test_a_temporarily_refused_end_is_repeated_first(sent: Sequence[Any]) -> None:
    """Otherwise the pipeline keeps the run open and treats the next run as its continuation."""

    async def run() -> None:
        async with serving(refuses_ends=ENDS_OFTEN - 1) as (scanner, pipeline):
            for nth, index in enumerate(sent):
                if index is None:
                    scanner.queue.put_nowait(RunOver())
                else:
                    scanner.send(index, seed=nth == len(sent) - 1, tr_s=SHORT_TR_S)
            first = [index for index in sent[:-1] if index is not None]
            ends = ["complete" if 3 in first else "aborted"] * ENDS_OFTEN
            await assert_heard(
                pipeline, START, *(VOLUMES[index] for index in first), *ends, START, VOLUMES[0]
            )

    asyncio.run(run())


@pytest.mark.parametrize(("refuses", "first"), [("", 0), ("run-start", 2)], ids=["begun again", "other plan"])
def test_the_end_of_a_run_left_open_is_repeated_once_per_tr(refuses: str, first: int) -> None:
    """Immediate retries would block the event loop: no page, no Ctrl-C."""

    async def run() -> None:
        async with serving(held={PLAN.run_id: {0, 1}}, refuses=refuses, refuses_ends=ENDS_OFTEN - 1) as (
            scanner,
            pipeline,
        ):
            scanner.send(first, tr_s=SHORT_TR_S)
            await assert_heard(pipeline, START, *["aborted"] * ENDS_OFTEN, START, VOLUMES[first])

    asyncio.run(run())


def test_refusals_are_sent_to_the_scanner() -> None:
    async def run() -> None:
        async with serving() as (scanner, pipeline):
            scanner.send(0)
            scanner.send(4)
            scanner.send(1, shape=(2, 4, 1))
            scanner.send(1, dtype="float64")
            scanner.send(2)
            await assert_heard(pipeline, START, VOLUMES[0], VOLUMES[2])
            assert scanner.told == [(0, "ack"), (4, "index"), (1, "grid"), (1, "grid"), (2, "ack")]
        async with serving(refuses="tr") as (scanner, pipeline):
            scanner.send(0)
            scanner.send(1, shape=(0, 2, 2))
            await assert_heard(pipeline, START)
            while len(scanner.told) < 2:
                await asyncio.sleep(0)
            assert scanner.told == [(0, "tr"), (1, "header")]

    asyncio.run(run())


@settings(deadline=None, max_examples=50)
@given(
    sent=st.lists(
        st.one_of(
            st.tuples(st.integers(0, 5), st.integers(0, 1), st.sampled_from(["", "a", "b"])), st.none()
        ),
        max_size=30,
    )
)
def test_volumes_lie_between_a_start_and_an_end_and_each_is_answered(
    sent: Sequence[Any],
) -> None:
    async def run() -> None:
        async with serving() as (scanner, pipeline):
            for each in sent:
                if each is None:
                    scanner.queue.put_nowait(RunOver())
                else:
                    scanner.send(each[0], each[1], series=each[2])
            n_volumes = len(sent) - sent.count(None)
            while len(scanner.told) < n_volumes or not scanner.queue.empty():
                await asyncio.sleep(0)
            assert [index for index, _ in scanner.told] == [each[0] for each in sent if each]
            assert all((code == "index") == (index >= 4) for index, code in scanner.told)
            assert {code for _, code in scanner.told} <= {"ack", "index", "over"}
            is_open = False
            for heard in pipeline.heard:
                assert is_open != heard.startswith("start")
                is_open = not heard.endswith(("complete", "aborted"))

    asyncio.run(run())


def test_our_own_messages_need_nothing_from_the_operator(tiny_bundle: Path) -> None:
    spec = Bundle.open(tiny_bundle).spec
    assert isinstance(
        open_source("tcp://127.0.0.1:5555", SourceOptions(), spec, keys=own_server_keys()), ZeroMqSource
    )
    with pytest.raises(ServeError, match="expected no --volumes"):
        open_source("tcp://127.0.0.1:5555", SourceOptions(n_volumes=3), spec)


@pytest.mark.parametrize(
    ("address", "told", "said"),
    [
        ("http://127.0.0.1:1", SourceOptions(), "expected a source like tcp://127.0.0.1:5555, pyneal"),
        ("pyneal+tcp://127.0.0.1:5555", SourceOptions(), "expected --volumes N"),
        ("pyneal+tcp://127.0.0.1:5555", SourceOptions(n_volumes=0), ">= 1"),
        ("pyneal+tcp://127.0.0.1:5555", SourceOptions(n_volumes=1, run_id="../x"), "matching regex"),
        ("pyneal+tcp://127.0.0.1:5555", SourceOptions(n_volumes=1, series="x"), "are for folder and dicom"),
        ("pyneal+tcp://127.0.0.1:5555", SourceOptions(n_volumes=1, allow=("10.0.0.5",)), "--allow is for"),
        ("folder:/", SourceOptions(n_volumes=1, allow=("10.0.0.5",)), "--allow is for"),
        ("afni+tcp://127.0.0.1:7961", SourceOptions(n_volumes=1, allow=("console",)), "10.0.0.0/24"),
        ("afni+tcp://127.0.0.1:7961", SourceOptions(n_volumes=1, tls_key=Path("x")), "--source-tls-key are"),
        ("dicom://127.0.0.1:11112", SourceOptions(n_volumes=1, tls_key=Path("x")), "together, and with"),
        ("dicom://127.0.0.1:11112", SourceOptions(n_volumes=1, tls_peers=Path("x")), "together, and with"),
        ("folder:/", SourceOptions(n_volumes=1, tls_peers=Path("x")), "--source-tls-peers is for dicom"),
        ("pyneal+tcp://0.0.0.0:5555", SourceOptions(n_volumes=1), "without authentication; forward the port"),
        ("afni+tcp://0.0.0.0:7961", SourceOptions(n_volumes=1), "without authentication; forward the port"),
    ],
)
def test_missing_or_invalid_options_are_named(
    tiny_bundle: Path, address: str, told: SourceOptions, said: str
) -> None:
    with pytest.raises(ServeError, match=said):
        open_source(address, told, Bundle.open(tiny_bundle).spec)
