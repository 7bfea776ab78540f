"""Files of a folder become runs: a served runtime and a scanner in this process, with real files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from realtime import wire
from realtime.record.reader import read_recorded
from realtime.sources.files.folder import FolderScanner
from realtime.sources.files.folder_events import changes
from realtime.sources.files.tree import Tree
from realtime.sources.run_boundaries import QUIET_TR, Plan, RunOver, Scan

from . import conftest
from .conftest import DemoScan, Served

PATIENCE_S = 60.0
SHORT_TR_S = 0.05
RUN_ID = "sub-01_task-realtime"


def nifti(scan: conftest.Scan, index: int) -> bytes:
    return nibabel.Nifti1Image(scan.voxels(index), np.array(scan.start.affine)).to_bytes()


def put(folder: Path, name: str, data: bytes) -> None:
    """Write in two pieces, like copying does."""
    with (folder / name).open("wb", buffering=0) as file:
        file.write(data[: len(data) // 2])
        file.write(data[len(data) // 2 :])


def moved_in(folder: Path, name: str, data: bytes) -> None:
    """Write atomically, like careful programs do."""
    (folder / f".{name}.part").write_bytes(data)
    (folder / f".{name}.part").rename(folder / name)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_the_demos_run_gives_the_same_frames_as_over_our_own_messages(
    frames_over: Callable[..., dict[str, bytes]],
    demo_frames: dict[str, bytes],
    demo_scan: DemoScan,
    export: Path,
) -> None:
    def send(index: int) -> None:
        put(export, f"demo_{index + 1:03d}.nii", nifti(demo_scan, index))

    assert frames_over(f"folder:{export}", f"{RUN_ID}_series-demo", lambda address: send) == demo_frames


@pytest.mark.parametrize("write", [put, moved_in])
def test_new_files_become_a_run_and_existing_files_do_not(
    serve: Callable[..., Served],
    make_scan: type[conftest.Scan],
    closed_account: Callable[[Path], dict[str, Any]],
    export: Path,
    write: Callable[[Path, str, bytes], None],
) -> None:
    scan = make_scan(n_volumes=12)
    put(export, "old_0001.nii", nifti(scan, 0))
    served = serve("--volumes", "12", source=f"folder:{export}")
    assert f"volumes from folder:{export}, runs recorded" in served.said
    (export / "notes.txt").write_text("no volume")
    for index in (1, 0, *range(2, 12)):
        write(export, f"run-1_{index + 1:04d}.nii", nifti(scan, index))
    summary = closed_account(served.out / f"{RUN_ID}_series-run1")
    assert (summary["received"], summary["missing"]) == (12, 0)
    assert served.interrupt() == 0
    assert [path.parent.name for path in served.out.glob("*/run.json")] == [f"{RUN_ID}_series-run1"]
    assert "Traceback" not in served.log()


def test_a_truncated_file_is_missing_and_the_run_ends_without_it(
    serve: Callable[..., Served],
    make_scan: type[conftest.Scan],
    closed_account: Callable[[Path], dict[str, Any]],
    export: Path,
) -> None:
    scan = make_scan(n_volumes=12)
    served = serve("--volumes", "12", source=f"folder:{export}")
    for index in range(12):
        data = nifti(scan, index)
        put(export, f"run-1_{index + 1:04d}.nii", data[:-1] if index == 4 else data)
    summary = closed_account(served.out / f"{RUN_ID}_series-run1")
    assert (summary["received"], summary["missing"]) == (11, 1)
    assert "run-1_0005.nii' is ignored: incomplete" in served.log()


def test_a_run_left_open_by_a_kill_continues_with_all_its_files(
    serve: Callable[..., Served],
    make_scan: type[conftest.Scan],
    closed_account: Callable[[Path], dict[str, Any]],
    export: Path,
) -> None:
    scan = make_scan(n_volumes=12)
    put(export, "old_0001.nii", nifti(scan, 9))
    first = serve("--volumes", "12", source=f"folder:{export}")
    for index in range(4):
        put(export, f"run-1_{index + 1:04d}.nii", nifti(scan, index))
    folder = first.out / f"{RUN_ID}_series-run1"
    wait_until(lambda: (folder / "run.json").exists() and len(read_recorded(folder).received) == 4)
    first.kill()
    for index in range(4, 8):
        put(export, f"run-1_{index + 1:04d}.nii", nifti(scan, index))
    second = serve("--volumes", "12", source=f"folder:{export}")
    for index in range(8, 12):
        put(export, f"run-1_{index + 1:04d}.nii", nifti(scan, index))
    summary = closed_account(folder)
    assert (summary["received"], summary["missing"]) == (12, 0)
    assert [path.parent.name for path in second.out.glob("*/run.json")] == [folder.name]


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait by the files that another process writes."""

    async def wait() -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.01)

    asyncio.run(wait())


class Watched:
    """A folder scanner; all volumes are acknowledged except those of series that the test refuses."""

    def __init__(self, scanner: FolderScanner, folder: Path, scan: conftest.Scan) -> None:
        self._scans = scanner.scans()
        self._folder = folder
        self._scan = scan
        self.refuses: set[str] = set()

    def write(self, *names: str) -> None:
        for name in names:
            moved_in(self._folder, name, nifti(self._scan, 0))

    async def asserts_to_hear(self, *expected: tuple[str, int] | None) -> None:
        """Expect the next volumes, each as series and index; None means the end of an aborted run."""
        async with asyncio.timeout(PATIENCE_S):
            for each in expected:
                news = await anext(self._scans)
                if isinstance(news, RunOver):
                    assert each is None
                    continue
                assert (news.series, news.index) == each
                await self._answer(news)

    async def _answer(self, news: Scan) -> None:
        if news.series in self.refuses:
            await news.answer(wire.Refused(run_id="r", code="grid", message="another grid"))
        else:
            await news.answer(wire.Ack(run_id="r", index=news.index))


@asynccontextmanager
async def watching(folder: Path, scan: conftest.Scan, **options: Any) -> AsyncIterator[Watched]:
    plan = Plan(subject=1, run_id=RUN_ID, n_volumes=3, tr_s=SHORT_TR_S)
    defaults: dict[str, Any] = {"series": "", "first_number": None, "echo": None, "unfinished": None}
    scanner = FolderScanner(folder, plan, **(defaults | options))
    watched = Watched(scanner, folder, scan)
    try:
        yield watched
    finally:
        assert isinstance(watched._scans, AsyncGenerator)
        await watched._scans.aclose()


def test_events_go_on_when_watched_folders_vanish_and_come_back(export: Path) -> None:
    inner = export / "day"
    inner.mkdir()
    tree = Tree(export)
    tree.all()

    async def run() -> None:
        inner.rmdir()  # before it is watched, and before the tree knows
        async with aclosing(changes(tree)) as events, asyncio.timeout(PATIENCE_S):
            first = asyncio.ensure_future(anext(events))
            while not first.done():  # the watch begins some time after it is asked for
                (export / "a.nii").write_bytes(b"a")
                await asyncio.sleep(0.05)
            assert first.result() == {str(export / "a.nii")}
            inner.mkdir()
            second = asyncio.ensure_future(told_of(events, inner / "b.nii"))
            while not second.done():
                (inner / "b.nii").write_bytes(b"b")
                await asyncio.sleep(0.05)
            second.result()

    async def told_of(events: AsyncIterator[set[str]], path: Path) -> None:
        while str(path) not in await anext(events):
            pass

    asyncio.run(run())


def test_a_parallel_series_is_ignored(export: Path, make_scan: type[conftest.Scan]) -> None:
    """Such as the motion-corrected copy of each volume."""

    async def run() -> None:
        async with watching(export, make_scan()) as watched:
            for number in (1, 2, 3):
                watched.write(f"raw_{number}.nii")
                await watched.asserts_to_hear(("raw", number - 1))
                watched.write(f"moco_{number}.nii")
            await watched.asserts_to_hear(None)
            watched.write("moco_4.nii", "raw_4.nii", "next_1.nii")
            await watched.asserts_to_hear(("next", 0))

    asyncio.run(run())


def test_files_that_appear_at_once_are_read_in_order_of_writing(
    export: Path, make_scan: type[conftest.Scan]
) -> None:
    """As after a network share was unavailable while the next run began."""

    async def run() -> None:
        async with watching(export, make_scan()) as watched:
            names = ["b_1.nii", "b_2.nii", "b_3.nii", "a_1.nii"]
            for name in names:
                watched.write(f".{name}")
            for second, name in enumerate(names):
                os.utime(export / f".{name}", (second, second))
                (export / f".{name}").rename(export / name)
            await watched.asserts_to_hear(("b", 0), ("b", 1), ("b", 2), None, ("a", 0))

    asyncio.run(run())


def test_a_repeated_run_is_followed_from_its_first_volume(
    export: Path, make_scan: type[conftest.Scan]
) -> None:
    async def run() -> None:
        async with watching(export, make_scan()) as watched:
            watched.write("run7_1.nii", "run7_2.nii")
            await watched.asserts_to_hear(("run7", 0), ("run7", 1))
            watched.write("run8_1.nii", "run8_2.nii")
            await watched.asserts_to_hear(None, ("run8", 0), ("run8", 1))
            watched.write("run7_3.nii", "run8_3.nii")
            await watched.asserts_to_hear(("run8", 2))

    asyncio.run(run())


def test_the_next_series_is_followed_after_a_refusal(export: Path, make_scan: type[conftest.Scan]) -> None:
    async def run() -> None:
        async with watching(export, make_scan()) as watched:
            watched.refuses.add("localizer")
            watched.write("localizer_1.nii", "run_1.nii")
            await watched.asserts_to_hear(("localizer", 0), None, ("run", 0))
            watched.write("localizer_2.nii", "run_2.nii")
            await watched.asserts_to_hear(("run", 1))

    asyncio.run(run())


def test_a_series_is_not_over_because_the_runtime_was_busy(
    export: Path, make_scan: type[conftest.Scan]
) -> None:
    """As while its disk is full: nobody polled, and files arrived meanwhile."""

    async def run() -> None:
        async with watching(export, make_scan()) as watched:
            for second, name in enumerate(("raw_1.nii", "moco_1.nii")):
                watched.write(f".{name}")
                os.utime(export / f".{name}", (second, second))
            for name in ("raw_1.nii", "moco_1.nii"):
                (export / f".{name}").rename(export / name)
            await watched.asserts_to_hear(("raw", 0))
            await asyncio.sleep((QUIET_TR + 1) * SHORT_TR_S)  # the time that is too long is what is tested
            watched.write("raw_2.nii", "moco_2.nii")
            await watched.asserts_to_hear(("raw", 1))
            watched.write("raw_3.nii")
            await watched.asserts_to_hear(("raw", 2))

    asyncio.run(run())


def test_after_an_aborted_run_the_next_is_followed_and_not_its_copy(
    export: Path, make_scan: type[conftest.Scan]
) -> None:
    """Raw and motion-corrected volumes alternate; the end of the old run is detected after some TR only."""

    async def run() -> None:
        async with watching(export, make_scan()) as watched:
            watched.write("raw7_1.nii")
            await watched.asserts_to_hear(("raw7", 0))
            for second, name in enumerate(("raw8_1.nii", "moco8_1.nii", "raw8_2.nii", "moco8_2.nii")):
                watched.write(f".{name}")
                os.utime(export / f".{name}", (second, second))
                (export / f".{name}").rename(export / name)
            await watched.asserts_to_hear(None, ("raw8", 0), ("raw8", 1))

    asyncio.run(run())


def test_reused_names_are_a_new_run_and_late_files_of_a_closed_run_are_logged(
    export: Path, make_scan: type[conftest.Scan], caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        scan = make_scan()
        moved_in(export, "run_1.nii", nifti(scan, 0))
        os.utime(export / "run_1.nii", (0, 0))  # of yesterday
        async with watching(export, scan) as watched:
            watched.write("run_1.nii", "run_2.nii", "run_3.nii")
            await watched.asserts_to_hear(("run", 0), ("run", 1), ("run", 2), None)
            watched.write("run_1.nii", "run_2.nii", "next_1.nii")
            await watched.asserts_to_hear(("next", 0))

    with caplog.at_level("WARNING"):
        asyncio.run(run())
    (said,) = [record.message for record in caplog.records if "is over" in record.message]
    assert said.startswith("'run_1.nii' and further files of its series are ignored")


def test_series_and_first_number_can_be_chosen(export: Path, make_scan: type[conftest.Scan]) -> None:
    async def run() -> None:
        async with watching(export, make_scan(), series="moco", first_number=0) as watched:
            watched.write("raw_0.nii", "run1_moco_0.nii")
            await watched.asserts_to_hear(("run1moco", 0))
        async with watching(export, make_scan(), first_number=2) as watched:
            watched.write("run_1.nii", "run_2.nii")
            await watched.asserts_to_hear(("run", 0))

    asyncio.run(run())


def test_a_run_in_one_file_that_is_shorter_than_planned_ends_and_the_next_is_followed(
    export: Path, make_scan: type[conftest.Scan], caplog: pytest.LogCaptureFixture
) -> None:
    scan = make_scan()
    short = nibabel.Nifti1Image(
        np.stack([scan.voxels(0), scan.voxels(1)], axis=-1), np.array(conftest.AFFINE)
    )

    async def run() -> None:
        async with watching(export, scan) as watched:
            moved_in(export, "short_bold.nii", short.to_bytes())
            await watched.asserts_to_hear(("shortbold", 0), ("shortbold", 1), None)
            watched.write("next_1.nii")
            await watched.asserts_to_hear(("next", 0))

    asyncio.run(run())
    (said,) = [each for each in caplog.messages if "--volumes plans" in each]
    assert said.startswith("2 of the 3 volumes that --volumes plans have come of series shortbold")
    assert said.endswith("its run ends")


def test_what_an_open_run_waits_for_is_told(
    export: Path, make_scan: type[conftest.Scan], caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with watching(export, make_scan()) as watched, asyncio.timeout(PATIENCE_S):
            watched.write("run_1.nii", "run_2.nii")
            await watched.asserts_to_hear(("run", 0), ("run", 1))
            following = asyncio.ensure_future(anext(watched._scans))
            while not any("its run stays open" in each for each in caplog.messages):
                await asyncio.sleep(0.01)
            watched.write("run_3.nii")
            scan = await following
            assert isinstance(scan, Scan)
            assert scan.index == 2

    asyncio.run(run())


def test_existing_files_are_read_only_for_an_unfinished_run(
    export: Path, make_scan: type[conftest.Scan]
) -> None:
    scan = make_scan()
    for name in ("old_1.nii", "run_1.nii", "run_2.nii"):
        put(export, name, nifti(scan, 0))

    async def run(unfinished: str, *expected: tuple[str, int]) -> None:
        async with watching(export, scan, unfinished=unfinished) as watched:
            watched.write(f"new{len(expected)}_1.nii")
            await watched.asserts_to_hear(*expected)

    asyncio.run(run(f"{RUN_ID}_series-run", ("run", 0), ("run", 1)))
    asyncio.run(run("another_series-run", ("new1", 0)))
