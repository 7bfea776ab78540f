"""A disk that is full for a while, with scanners that announce no runs: no volume is lost."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.record.journal import read_journal
from realtime.record.reader import Recorded, read_recorded
from realtime.sources.files.folder import FolderScanner
from realtime.sources.run_boundaries import Plan, RunBoundarySource, RunOver

from .conftest import Scan
from .in_process import SHORT_TR_S, Bench, bench, decoded, timed
from .test_announced import Scanner
from .test_dicom import GRID, single, written
from .test_folder import nifti

N_VOLUMES = 4
RUN_ID = "sub-01_task-realtime"
PLAN = Plan(subject=1, run_id=RUN_ID, n_volumes=N_VOLUMES, tr_s=SHORT_TR_S)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no limits of files there")


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """Let no file of this process grow, as on a full disk; what is written outside can be moved in."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def bundle(make_tiny_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(make_tiny_bundle(tmp_path_factory.mktemp("short") / "tiny", **timed(SHORT_TR_S)))


@pytest.fixture
def scan(make_scan: type[Scan]) -> Scan:
    return make_scan(n_volumes=N_VOLUMES, dtype="uint16", changes={"tr_s": SHORT_TR_S})


async def ended(one: Bench, n_runs: int) -> Recorded:
    """The record of the last of so many runs, once it has ended."""
    await one.until(lambda: len(one.ended) == n_runs)
    return read_recorded(one.ended[-1])


def journaled(folder: Path) -> Iterator[tuple[int, bytes]]:
    """Volumes by their index."""
    for entry in read_journal(folder / "volumes.journal"):
        message = wire.decode_to_runtime(entry.header)
        if isinstance(message, wire.Volume):
            yield message.index, entry.payload


def n_told(one: Bench, said: str) -> int:
    """How often listeners have heard a message that begins so."""
    return sum(each.message.startswith(said) for each in one.told)


# A scanner without series


def test_a_run_that_cannot_be_closed_is_closed_when_there_is_room_and_the_next_is_another(
    bundle: Bundle, scan: Scan, tmp_path: Path
) -> None:
    """What the scanner sends meanwhile waits for it."""
    scanner = Scanner()

    def send(index: int, seed: int) -> None:
        voxels = memoryview((scan.voxels(index) + seed).astype("<u2").tobytes())
        scanner.send(index, shape=scan.start.shape, affine=scan.start.affine, dtype="uint16", payload=voxels)

    async def run() -> None:
        async with bench(bundle, tmp_path, source=RunBoundarySource(scanner, PLAN)) as one:
            for index in (0, 1, 2):
                send(index, 0)
            await one.until(lambda: one.recording.received == 3)
            with no_room():
                scanner.queue.put_nowait(RunOver())
                send(0, 1)
                await one.until(lambda: one.recording.alarm and n_told(one, "refused a RunEnd") >= 3)
                assert not one.ended
            first = await ended(one, 1)
            assert (first.path.name, set(first.received)) == (RUN_ID, {0, 1, 2})
            for index in (1, 2, 3):
                send(index, 1)
            second = await ended(one, 2)
            assert (second.path.name, set(second.received)) == (f"{RUN_ID}_take-2", {0, 1, 2, 3})
            assert one.recording.alarm == ""

    asyncio.run(run())


# A folder


class Export:
    """A folder that a scanner writes into; what it will write is there, hidden, from the start."""

    def __init__(self, folder: Path, volumes: list[dict[str, bytes]]) -> None:
        folder.mkdir()
        self.folder = folder
        self._volumes = volumes
        for files in volumes:
            for name, data in files.items():
                (folder / f".{name}").write_bytes(data)

    def write(self, *indices: int) -> None:
        for index in indices:
            for name in self._volumes[index]:
                (self.folder / f".{name}").rename(self.folder / name)


@asynccontextmanager
async def watching(bundle: Bundle, out: Path, export: Export) -> AsyncIterator[Bench]:
    scanner = FolderScanner(export.folder, PLAN, series="", first_number=1, echo=None, unfinished=None)
    async with bench(bundle, out, source=RunBoundarySource(scanner, PLAN)) as one:
        yield one


def niftis(scan: Scan) -> list[dict[str, bytes]]:
    return [{f"run_{index + 1}.nii": nifti(scan, index)} for index in range(N_VOLUMES)]


def slices(scan: Scan) -> list[dict[str, bytes]]:
    n_slices = scan.start.shape[2]
    volumes = []
    for index in range(N_VOLUMES):
        first = 1 + index * n_slices
        files = {}
        for slice_ in range(n_slices):
            data = single(scan.voxels(index), slice_, first + slice_, None)
            data.RepetitionTime = 1_000 * SHORT_TR_S
            files[f"run_{first + slice_:03d}.dcm"] = written(data)
        volumes.append(files)
    return volumes


@pytest.mark.parametrize("n_before", [0, 1], ids=["at the run's start", "within the run"])
@pytest.mark.parametrize("files", [niftis, slices])
def test_files_that_came_while_the_disk_was_full_are_recorded_when_there_is_room(
    bundle: Bundle,
    scan: Scan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: Callable[..., list[dict[str, bytes]]],
    n_before: int,
) -> None:
    affine = scan.start.affine
    monkeypatch.setitem(GRID, "sizes_mm", tuple(affine[axis][axis] for axis in range(3)))
    monkeypatch.setitem(GRID, "origin_mm", tuple(affine[axis][3] for axis in range(3)))
    export = Export(tmp_path / "export", files(scan))

    async def run() -> None:
        async with watching(bundle, tmp_path / "runs", export) as one:
            export.write(*range(n_before))
            await one.until(lambda: one.recording.received == n_before)
            with no_room():
                export.write(*range(n_before, N_VOLUMES - 1))
                await one.until(lambda: n_told(one, "refused a") >= 3)
            await one.until(lambda: one.recording.received == N_VOLUMES - 1)
            export.write(N_VOLUMES - 1)
            await ended(one, 1)
            recorded = await decoded(one.ended[-1], bundle)
            assert recorded.received == set(range(N_VOLUMES))
            assert "missing" not in {row.state for row in recorded.rows}
            for index, payload in journaled(recorded.path):
                assert payload == scan.voxels(index).astype("<f4").tobytes()

    asyncio.run(run())
