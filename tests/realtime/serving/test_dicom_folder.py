"""DICOM series in a watched folder: which one becomes the run, and what is said of the others."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import FileDataset

from realtime import wire
from realtime.bundle.locate import demo_data
from realtime.bundle.match import read_spec
from realtime.errors import ServeError
from realtime.sources.files import watch
from realtime.sources.files.dicom import read
from realtime.sources.files.folder import FolderScanner, SeriesScanner
from realtime.sources.open import SourceOptions, open_source
from realtime.sources.run_boundaries import Plan, RunOver, Scan

from .test_dicom import VOXELS, enhanced, mosaic, written
from .test_dicom_series import N_VOLUMES, voxels, with_echoes
from .test_folder import PATIENCE_S, SHORT_TR_S, moved_in


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    return folder


async def news_of(scanner: SeriesScanner, n_volumes: int) -> list[Scan | RunOver]:
    """Return what comes of a scanner, up to so many volumes, each of which is acknowledged."""
    news: list[Scan | RunOver] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(scanner.scans()) as scans:
        async for each in scans:
            news.append(each)
            if isinstance(each, Scan):
                await each.answer(wire.Ack(run_id="r", index=each.index))
            if sum(isinstance(one, Scan) for one in news) == n_volumes:
                break
    return news


def heard(
    export: Path, sent: list[FileDataset], n_volumes: int, first_name: int = 0, **options: Any
) -> list[Scan | RunOver]:
    """Write files one by one into a watched folder; return what comes of them, up to so many volumes."""
    plan = Plan(subject=1, run_id="sub-01_task-realtime", n_volumes=n_volumes, tr_s=SHORT_TR_S)
    defaults: dict[str, Any] = {"series": "", "first_number": None, "echo": None, "unfinished": None}

    async def run() -> list[Scan | RunOver]:
        scanner = FolderScanner(export, plan, **(defaults | options))
        for count, data in enumerate(sent, start=first_name):
            moved_in(export, f"{count:06d}.dcm", written(data))
        return await news_of(scanner, n_volumes)

    return asyncio.run(run())


def voxels_of(scan: Scan | RunOver) -> np.ndarray:
    assert isinstance(scan, Scan)
    return np.frombuffer(scan.payload, "<f4").reshape(scan.shape)


def asserts_run(news: list[Scan | RunOver], echo: int = 0) -> None:
    """Expect the volumes of one run and nothing else."""
    assert [each.index if isinstance(each, Scan) else None for each in news] == list(range(N_VOLUMES))
    for index, scan in enumerate(news):
        assert np.array_equal(voxels_of(scan), voxels(index, echo))


def run_of(make: Any = mosaic, series: int = 7, **headers: Any) -> list[FileDataset]:
    images = [make(voxels(k), k + 1, series) for k in range(N_VOLUMES)]
    for data in images:
        for name, value in headers.items():
            setattr(data, name, value)
    return images


@pytest.mark.parametrize("make", [mosaic, enhanced])
@pytest.mark.parametrize("series", ["", "bold"])
def test_a_single_band_reference_is_no_run(
    export: Path, make: Any, series: str, caplog: pytest.LogCaptureFixture
) -> None:
    reference = make(VOXELS + 9, 1, 6)
    reference.SeriesDescription = "cmrr_mbep2d_bold_SBRef"
    with caplog.at_level("INFO"):
        asserts_run(heard(export, [reference, *run_of(make)], N_VOLUMES, series=series))
    (said,) = [message for message in caplog.messages if "SBRef" in message]
    assert "is a reference of one volume; --series cmrr_mbep2d_bold_SBRef follows it" in said


def test_a_single_band_reference_is_followed_if_it_is_asked_for(export: Path) -> None:
    reference = mosaic(VOXELS + 9, 1, 6)
    reference.SeriesDescription = "cmrr_mbep2d_bold_SBRef"
    (scan,) = heard(export, [*run_of(), reference], 1, series="SBRef")
    assert np.array_equal(voxels_of(scan), VOXELS + 9)


def test_a_phase_series_is_no_run(export: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Even if it is the first to come."""
    phase = run_of(series=8, ImageType=["ORIGINAL", "PRIMARY", "P", "ND", "MOSAIC"])
    sent = [image for pair in zip(phase, run_of(), strict=True) for image in pair]
    asserts_run(heard(export, sent, N_VOLUMES))
    (said,) = [message for message in caplog.messages if "phase" in message]
    assert "'000000.dcm' and other phase images of series 8x" in said
    assert "are passed over: magnitude is decoded" in said


def test_a_corrected_copy_beside_the_series_is_told_and_chosen_by_name(
    export: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = [mosaic(np.full(VOXELS.shape, 5, "<u2"), k + 1, 8) for k in range(N_VOLUMES)]
    for data in copy:
        data.SeriesDescription, data.ImageType = "MoCoSeries", ["ORIGINAL", "PRIMARY", "M", "MOCO", "MOSAIC"]
    sent = [image for pair in zip(run_of(), copy, strict=True) for image in pair]
    with caplog.at_level("INFO"):
        asserts_run(heard(export, sent, N_VOLUMES))
    assert [message for message in caplog.messages if "(MoCoSeries) waits" in message]
    (export / "000000.dcm").unlink()
    again = heard(export, [*sent[1:]], 1, series="MoCo")
    assert np.array_equal(voxels_of(again[0]), np.full(VOXELS.shape, 5))


@pytest.mark.parametrize(("choice", "echo"), [(None, 0), (1, 0), (2, 1)])
def test_an_echo_is_chosen(export: Path, choice: int | None, echo: int) -> None:
    sent = with_echoes(mosaic, lambda k, echo: (2 * k + echo + 1, k + 1), 2)
    asserts_run(heard(export, sent, N_VOLUMES, echo=choice), echo)


def test_the_series_uid_is_no_part_of_a_series(export: Path) -> None:
    sent = run_of()
    sent[2].SeriesInstanceUID = "1.2.3.4"
    asserts_run(heard(export, sent, N_VOLUMES))


def test_a_run_that_a_crash_left_open_keeps_its_first_number(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is read first: files that were there before are taken up in parts."""
    monkeypatch.setattr(watch, "BACKLOG_AT_ONCE", 2)
    images = [mosaic(voxels(k), k + 6) for k in range(N_VOLUMES)]
    (image,) = read(written(images[0]))
    for count, data in enumerate(images[:3]):
        moved_in(export, f"{count:06d}.dcm", written(data))
    news = heard(
        export, images[3:], N_VOLUMES, first_name=3, unfinished=f"sub-01_task-realtime_series-{image.series}"
    )
    asserts_run(sorted(news, key=lambda scan: scan.index if isinstance(scan, Scan) else -1))


@pytest.mark.parametrize("choice", ["0", "two", "-1", ""])
def test_an_echo_that_is_none_is_refused(export: Path, choice: str) -> None:
    spec, _ = read_spec(demo_data("bundle"))
    with pytest.raises(ServeError, match="expected --echo N, from 1, or --echo combine"):
        open_source(f"folder:{export}", SourceOptions(n_volumes=9, echo=choice), spec)
    with pytest.raises(ServeError, match="--echo is for folder"):
        open_source("pyneal+tcp://127.0.0.1:5555", SourceOptions(n_volumes=9, echo="1"), spec)
