"""A runtime that seals every run: what is kept in plain form, for how long, and what is told of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyrage
import pytest

from realtime import cli, wire
from realtime.bundle.bundle import Bundle
from realtime.errors import RealtimeError
from realtime.events import Event, Reported, Status
from realtime.network.channel import listening
from realtime.record.age import recipients_of
from realtime.record.reader import read_recorded
from realtime.record.run_json import read_run_file
from realtime.record.seal import seal, unseal
from realtime.service.after_run import AfterRun
from realtime.service.decode import Options, decode

from .conftest import PATIENCE_S, Client, Scan, Served, wait_until
from .in_process import Lockstep, bench

IDENTITY = pyrage.x25519.Identity.generate()
KEY = str(IDENTITY.to_public())


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    path = tmp_path / "key.txt"
    path.write_text(f"{IDENTITY}\n")
    return path


@pytest.fixture
def scan(make_scan: type[Scan]) -> Scan:
    return make_scan(n_volumes=12)


@pytest.fixture
def closed_run(tiny_bundle: Path, tmp_path: Path) -> Callable[[Scan], Path]:
    """Makes the folder of a run that is over, without a report."""

    def make(scan: Scan) -> Path:
        run = Lockstep.begin(tmp_path / "out", Bundle.open(tiny_bundle), scan.start)
        for index in range(scan.n_volumes):
            run.volume(scan.volume(index), scan.voxels(index).tobytes(), 0.0)
        run.end()
        run.close()
        return run.path

    return make


def sealed_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.tar.age")


async def alarm_of_decoder(out: Path, expected: Callable[[str], bool]) -> str:
    async with asyncio.timeout(PATIENCE_S), listening(out, "decoder") as heard:
        while True:
            message = await heard.receive()
            if isinstance(message, Event) and isinstance(message.message, Status):
                alarm = message.message.alarm
                if expected(alarm):
                    return alarm


def test_every_run_is_sealed_once_its_report_is_written_and_one_that_is_not_is_an_alarm(
    serve: Callable[..., Served], connect: Callable[..., Client], scan: Scan, identity: Path
) -> None:
    served = serve("--seal-to", KEY)
    client, folder = connect(served.address), served.run_folder(scan)
    client.ask(scan.start)
    (folder / "link").symlink_to("run.json")  # which no seal takes
    for index in range(scan.n_volumes):
        client.send_volume(scan, index)
    client.ask(scan.end())
    alarm = asyncio.run(alarm_of_decoder(served.out, bool))
    assert alarm.startswith(f"{folder.name} is not sealed: cannot read {folder / 'link'}: it is a link")
    assert alarm.endswith(f"run `realtime seal {folder} --to {KEY}`")
    assert len(read_recorded(folder).rows) == scan.n_volumes
    (folder / "link").unlink()
    assert cli.main(["seal", str(folder), "--to", KEY]) == 0
    asyncio.run(alarm_of_decoder(served.out, lambda alarm: not alarm))
    first = sealed_of(folder).read_bytes()

    assert client.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)  # it had missed the answer
    client.send_run(scan)  # the same run once more is another take
    again = served.run_folder(scan, take=2)
    wait_until(lambda: sealed_of(again).exists() and not again.exists(), f"that {again} is sealed")
    assert served.interrupt() == 0
    assert sealed_of(folder).read_bytes() == first
    assert sorted(path.name for path in served.out.iterdir() if not path.name.endswith(".lock")) == [
        sealed_of(folder).name,
        sealed_of(again).name,
    ]
    for each in (folder, again):
        assert unseal(sealed_of(each), identity) == each
        assert len(read_recorded(each).rows) == scan.n_volumes
        assert (each / "report.html").exists()
    assert f"sealed in {sealed_of(again)}" in served.log()


def test_a_recorder_that_was_started_again_knows_a_sealed_run_as_one_that_is_over(
    tiny_bundle: Path, scan: Scan, closed_run: Callable[[Scan], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = closed_run(scan)
    seal(folder, recipients_of([KEY]))

    async def run() -> None:
        async with bench(Bundle.open(tiny_bundle), folder.parent) as one:
            assert await one.source.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)
            assert await one.start(scan) == wire.RunAccepted(run_id=scan.run_id, held=[])
            assert one.recording.run_folder == f"{folder}_take-2"

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert not caplog.records
    assert not folder.exists()


def after_run(*keys: str) -> tuple[AfterRun, list[Reported], list[str | None]]:
    reported: list[Reported] = []
    told: list[str | None] = []
    return AfterRun(keys, reported.append, told.append), reported, told


def test_a_run_that_is_left_open_is_reported_and_not_sealed(
    closed_run: Callable[[Scan], Path], scan: Scan
) -> None:
    folder = closed_run(scan)

    async def run() -> None:
        after, reported, told = after_run(KEY)
        after.take(folder, is_closed=False)
        await after.stop()
        assert (reported, told) == ([Reported(run_folder=str(folder))], [])

    asyncio.run(run())
    assert read_run_file(folder).state == "closed"


def test_a_run_whose_decoder_died_while_its_report_was_written_is_sealed_by_the_next(
    closed_run: Callable[[Scan], Path], scan: Scan
) -> None:
    folder = closed_run(scan)

    async def run() -> None:
        first, reported, _ = after_run(KEY)
        first.take(folder, is_closed=True)
        await asyncio.sleep(0)
        for task in list(first._tasks):
            task.cancel()
        await first.stop()
        assert reported == []
        assert folder.exists()
        after, _, _ = after_run(KEY)
        after.take_left_over(folder.parent)
        await after.stop()

    asyncio.run(run())
    assert [path.name for path in folder.parent.iterdir()] == [sealed_of(folder).name]


def test_what_was_interrupted_is_sealed_at_the_next_start_and_what_was_never_begun_is_named(
    closed_run: Callable[[Scan], Path], make_scan: type[Scan], caplog: pytest.LogCaptureFixture
) -> None:
    begun, older = (closed_run(make_scan(run_id=name, n_volumes=12)) for name in ("begun", "older"))
    (begun.parent / f".partial-{begun.name}.tar.age").write_bytes(b"half of it")

    async def run() -> list[str | None]:
        after, _, told = after_run(KEY)
        after.take_left_over(begun.parent)
        await after.stop()
        assert after.alarm == ""
        return told

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(run()) == [
            f"begun is sealed; `realtime unseal {sealed_of(begun)} --identity FILE` opens it"
        ]
    assert sorted(path.name for path in begun.parent.iterdir()) == ["begun.tar.age", "older"]
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"closed runs in {older.parent} that are not sealed, and stay so: older; ")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seal_to": ("age1xyz",)}, "expected a public key"),
        ({"seal_to": (str(IDENTITY),)}, "got a secret key"),
        ({"seal_to": (KEY,), "carry": True}, "leave one of the two out"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    tiny_bundle: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(RealtimeError, match=says):
        decode(Options(bundle=tiny_bundle, bundle_is_demo=False, out=tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()
