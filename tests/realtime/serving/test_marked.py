"""Markers from presentation software beside scanners that send none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from realtime import cli, wire
from realtime.network.key_files import load_client_keys, make_keys
from realtime.record.reader import read_recorded
from realtime.sources.markers import PATIENCE_TR, MarkedSource

from ...keyed import without_keys
from .conftest import Client, Scan, Served, wait_until
from .in_process import QueueSource
from .test_pyneal import RUN_ID, Pyneal

PRESENTATION = Path(__file__).parents[3] / "docs" / "examples" / "presentation.py"
ONSETS = range(1, 12, 3)
LONG_TR_S, SHORT_TR_S, NO_TIME_S = 60.0, 0.05, 1e-9


class Presentation:
    """The example as a process; lines on its standard input say what is on screen."""

    def __init__(self, address: str, *keys: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PRESENTATION), address, *keys],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def show(self, volume: int, picture: Path) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{volume} {picture}\n")
        self._process.stdin.flush()

    def said(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def presentations() -> Iterator[list[Presentation]]:
    started: list[Presentation] = []
    yield started
    for each in started:
        each.close()


@pytest.fixture
def pictures(make_picture: Callable[..., bytes], tmp_path: Path) -> dict[int, Path]:
    files = {onset: tmp_path / f"picture {onset}.png" for onset in ONSETS}
    for onset, file in files.items():
        file.write_bytes(make_picture(onset))
    return files


def test_a_bank_decodes_what_presentation_software_shows_beside_pyneal(
    serve: Callable[..., Served],
    presentations: list[Presentation],
    make_scan: type[Scan],
    pictures: dict[int, Path],
    tiny_bank: Path,
    closed_account: Callable[[Path], dict[str, Any]],
) -> None:
    scan = make_scan(n_volumes=12, dtype="uint16")
    options = ("--volumes", "12", "--markers", "tcp://127.0.0.1:0")
    served = serve(*options, bundle=tiny_bank, source="pyneal+tcp://127.0.0.1:0")
    presentation = Presentation(served.said.split("markers from ")[1].split(",")[0])
    presentations.append(presentation)
    scanner = Pyneal(served.address)
    try:
        scanner.say(b"hello")
        presentation.show(ONSETS[0], pictures[ONSETS[0]])  # before the run's first volume
        for index in range(12):
            assert scanner.send(index, scan.voxels(index), scan.start.affine).startswith("received")
            if index in ONSETS:
                assert presentation.said() == f"volume {index}: picture {index}.png, in {RUN_ID}\n"
            if index + 3 in ONSETS:
                presentation.show(index + 3, pictures[index + 3])
    finally:
        scanner.close()
    assert closed_account(served.out / RUN_ID)["received"] == 12
    assert served.interrupt() == 0
    recorded = read_recorded(served.out / RUN_ID)
    shown = {picture.onset_volume: picture for picture in recorded.pictures}
    assert shown.keys() == set(ONSETS)
    for onset, picture in shown.items():
        assert picture.path.read_bytes() == pictures[onset].read_bytes()
        assert picture.name == f"picture {onset}"
    due = {
        (name, onset)
        for name, last in (("before-2", 3), ("after-1", 6))
        for onset in ONSETS
        if onset + last < 12
    }
    specialised = [row for row in recorded.rows if row.decoder != "general"]
    assert {(row.decoder, row.shown_onset) for row in specialised} == due


def test_only_keys_of_presentation_software_open_the_port_of_markers(
    serve: Callable[..., Served],
    connect: Callable[..., Client],
    make_scan: type[Scan],
    make_picture: Callable[..., bytes],
    presentations: list[Presentation],
    pictures: dict[int, Path],
    tmp_path: Path,
) -> None:
    scan = make_scan(n_volumes=12)
    make_keys(tmp_path / "keys", ["screen"])
    make_keys(tmp_path / "other")
    options = (
        "--volumes",
        "12",
        "--markers",
        "tcp://127.0.0.1:0",
        "--keys",
        str(tmp_path / "keys" / "runtime"),
    )
    served = serve(*options, source="pyneal+tcp://127.0.0.1:0")
    address = served.said.split("markers from ")[1].split(",")[0]
    strangers = [
        connect(address, prepare)
        for prepare in (
            without_keys,
            load_client_keys(tmp_path / "keys" / "screen").use,
            load_client_keys(tmp_path / "keys" / "scanner").use,
            load_client_keys(tmp_path / "other" / "presentation").use,  # of another runtime
        )
    ]
    for stranger in strangers:
        stranger.send_frames(wire.encode(scan.marker(1)), make_picture(1))
    known = Presentation(address, str(tmp_path / "keys" / "presentation"))
    presentations.append(known)
    known.show(4, pictures[4])
    scanner = Pyneal(served.address)
    try:
        scanner.say(b"hello")
        scanner.send(0, scan.voxels(0), scan.start.affine)
        assert known.said() == f"volume 4: picture 4.png, in {RUN_ID}\n"
    finally:
        scanner.close()
    assert not any(stranger.has_reply() for stranger in strangers)
    wait_until(lambda: read_recorded(served.out / RUN_ID).pictures, "a picture")
    assert served.interrupt() == 0
    assert [picture.onset_volume for picture in read_recorded(served.out / RUN_ID).pictures] == [4]


def test_markers_option_is_refused_with_our_own_messages(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--source", "tcp://127.0.0.1:0", "--markers", "tcp://127.0.0.1:0"]
    assert cli.main(["serve", "--headless", "--bundle", str(tiny_bundle), *given]) == 2
    assert "expected no --volumes" in (said := capsys.readouterr().err)
    assert "--markers" in said


# What the pipeline gets, in this process


@asynccontextmanager
async def marked(tr_s: float) -> AsyncIterator[tuple[QueueSource, QueueSource, MarkedSource]]:
    volumes, markers = QueueSource(), QueueSource()
    source = MarkedSource(volumes, markers, tr_s)
    try:
        yield volumes, markers, source
    finally:
        await source.stop()


def test_a_marker_waits_for_its_run_and_precedes_volumes(make_scan: type[Scan]) -> None:
    scan = make_scan(n_volumes=3, changes={"tr_s": LONG_TR_S})
    marker = wire.Marker(run_id="presentation", onset_volume=0, name="a picture")

    async def run() -> None:
        async with marked(LONG_TR_S) as (volumes, markers, source):
            asking = [asyncio.ensure_future(markers.ask(marker))]
            for message in (scan.start, scan.volume(0), scan.volume(1), scan.end()):
                asking.append(asyncio.ensure_future(volumes.ask(message)))
            await asyncio.sleep(0)
            got = [(await source.receive()).message for _ in range(5)]
            of_the_run = wire.Marker(run_id=scan.run_id, onset_volume=0, name="a picture")
            assert got == [scan.start, scan.volume(0), of_the_run, scan.volume(1), scan.end()]
            for asked in asking:
                asked.cancel()

    asyncio.run(run())


def test_a_marker_belongs_to_its_run_even_if_the_first_volume_is_late(make_scan: type[Scan]) -> None:
    """The first volume of a scan can take long; there was no earlier run."""
    scan = make_scan(n_volumes=3, changes={"tr_s": LONG_TR_S})

    async def run() -> None:
        async with marked(LONG_TR_S) as (volumes, markers, source):
            asking = [asyncio.ensure_future(markers.ask(scan.marker(0)))]
            await asyncio.sleep(0)
            early = await markers.messages.get()
            markers.messages.put_nowait(replace(early, received_s=early.received_s - 4 * LONG_TR_S))
            asking += [
                asyncio.ensure_future(volumes.ask(message)) for message in (scan.start, scan.volume(0))
            ]
            got = [(await source.receive()).message for _ in range(3)]
            assert got == [scan.start, scan.volume(0), scan.marker(0)]
            for asked in asking:
                asked.cancel()

    asyncio.run(run())


def test_a_marker_without_a_run_is_refused_after_a_timeout(make_scan: type[Scan]) -> None:
    scan = make_scan(n_volumes=3)

    async def run() -> None:
        async with marked(NO_TIME_S) as (volumes, markers, source):
            receiving = asyncio.ensure_future(source.receive())
            refused = await markers.ask(scan.marker(0))
            assert isinstance(refused, wire.Refused)
            assert (refused.code, "send it again" in refused.message) == ("no-run", True)
            asked = asyncio.ensure_future(volumes.ask(scan.start))
            assert (await receiving).message == scan.start
            asked.cancel()

    asyncio.run(run())


def test_a_marker_of_a_closed_run_is_not_assigned_to_the_next(make_scan: type[Scan]) -> None:
    """A late marker for volume 2 waits when the next run begins, which has no volume 2 yet."""
    at_tr = {"tr_s": LONG_TR_S}
    first = make_scan(n_volumes=3, changes=at_tr)
    second = make_scan(n_volumes=3, run_id="next", changes=at_tr)

    async def run() -> None:
        async with marked(LONG_TR_S) as (volumes, markers, source):
            messages = (first.start, first.volume(0), first.end(), second.start, second.volume(0))
            asking = [asyncio.ensure_future(volumes.ask(message)) for message in messages[:3]]
            got = [(await source.receive()).message for _ in range(3)]
            late = asyncio.ensure_future(markers.ask(first.marker(4)))
            of_next = asyncio.ensure_future(markers.ask(first.marker(0)))
            await asyncio.sleep(0)
            asking += [asyncio.ensure_future(volumes.ask(message)) for message in messages[3:]]
            await asyncio.sleep(0)
            got += [(await source.receive()).message for _ in range(3)]
            assert got == [*messages, wire.Marker(run_id="next", onset_volume=0, name="picture 0")]
            refused = await late
            assert isinstance(refused, wire.Refused)
            assert (refused.code, "which is over" in refused.message) == ("over", True)
            for asked in (*asking, of_next):
                asked.cancel()

    asyncio.run(run())


def test_a_marker_after_a_silent_run_waits_for_the_next_volume(make_scan: type[Scan]) -> None:
    """The run was aborted, which is known only when the next begins."""
    at_tr = {"tr_s": SHORT_TR_S}
    first = make_scan(n_volumes=3, changes=at_tr)
    second = make_scan(n_volumes=3, run_id="next", changes=at_tr)

    async def run() -> None:
        async with marked(SHORT_TR_S) as (volumes, markers, source):
            asking = [
                asyncio.ensure_future(volumes.ask(message)) for message in (first.start, first.volume(0))
            ]
            for _ in range(2):
                await source.receive()
            silent_s = perf_counter() + (PATIENCE_TR + 1) * SHORT_TR_S
            while perf_counter() < silent_s:
                await asyncio.sleep(SHORT_TR_S)
            asking.append(asyncio.ensure_future(markers.ask(first.marker(0))))
            await asyncio.sleep(0)
            messages = (first.end(), second.start, second.volume(0))
            asking += [asyncio.ensure_future(volumes.ask(message)) for message in messages]
            got = [(await source.receive()).message for _ in range(4)]
            assert got == [*messages, wire.Marker(run_id="next", onset_volume=0, name="picture 0")]
            for asked in asking:
                asked.cancel()

    asyncio.run(run())


def test_other_messages_are_refused_at_the_marker_port(make_scan: type[Scan]) -> None:
    scan = make_scan(n_volumes=3, changes={"tr_s": LONG_TR_S})

    async def run() -> None:
        async with marked(LONG_TR_S) as (_, markers, source):
            receiving = asyncio.ensure_future(source.receive())
            for message in (scan.start, scan.volume(0), scan.end()):
                refused = await markers.ask(message)
                assert isinstance(refused, wire.Refused)
                assert (refused.code, refused.run_id) == ("kind", scan.run_id)
            receiving.cancel()

    asyncio.run(run())
