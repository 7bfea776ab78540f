"""What a scanner acquires at once, or one after the other, however it stores it in series."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import FileDataset

from realtime.sources.files.dicom import read
from realtime.sources.files.folder import SeriesScanner
from realtime.sources.files.watch import Found
from realtime.sources.run_boundaries import Plan, RunOver, Scan

from .test_dicom import VOXELS, enhanced, mosaic, single, written
from .test_dicom_folder import asserts_run, news_of, voxels_of
from .test_dicom_series import ECHO_TIMES_MS, N_SLICES, N_VOLUMES, Heard, set_echo_time, voxels
from .test_unsaid_echoes import clock

TR_S = 2.0
LONG_TR_S = 60.0
"""A test that waits for several of these fails."""
N_ECHOES = 2

Files = list[FileDataset]


class Sent:
    """Files that have come one by one, as :class:`realtime.sources.files.incoming.Incoming`."""

    def __init__(self, files: Files) -> None:
        self._held = {f"{count:06d}.dcm": read(written(data)) for count, data in enumerate(files)}
        self._to_tell = dict.fromkeys(self._held)
        self.is_settling = self.is_held_up = False

    def look(self, now_s: float) -> Iterator[Found]:
        while self._to_tell:
            name = next(iter(self._to_tell))
            del self._to_tell[name]
            for image in self._held[name]:
                yield Found(name=name, holds=image, whole_s=now_s, was_there_before=False)

    def again(self, name: str) -> None:
        self._to_tell[name] = None


def heard(sent: Files, n_scans: int, tr_s: float = LONG_TR_S, **options: Any) -> list[Scan | RunOver]:
    """Return what comes of files, up to so many volumes."""
    plan = Plan(subject=1, run_id="sub-01_task-realtime", n_volumes=N_VOLUMES, tr_s=tr_s)
    defaults: dict[str, Any] = {"series": "", "first_number": None, "echo": None, "unfinished": None}

    async def run() -> list[Scan | RunOver]:
        scanner = SeriesScanner(Sent(sent), plan, **(defaults | options))
        return await news_of(scanner, n_scans)

    return asyncio.run(run())


def slices(volume: np.ndarray, number: int, series: int) -> Files:
    return [single(volume, z, (number - 1) * N_SLICES + z + 1, None, series) for z in range(N_SLICES)]


def made(
    make: Any, volume: np.ndarray, number: int, series: int, time_s: float | None, **headers: Any
) -> Files:
    files = make(volume, number, series)
    for data in files if isinstance(files, list) else [files]:
        data.SeriesDescription = "ep2d_bold"
        if time_s is not None:
            data.AcquisitionTime = clock(time_s + 0.25)
        for name, value in headers.items():
            setattr(data, name, value)
    return files if isinstance(files, list) else [files]


@pytest.mark.parametrize("has_times", [True, False])
@pytest.mark.parametrize("make", [mosaic, enhanced, slices])
def test_a_reference_of_one_volume_is_over_when_the_run_begins(
    make: Any,
    has_times: bool,
) -> None:
    def at(time_s: float) -> float | None:
        return time_s if has_times else None

    sent = made(make, VOXELS + 9, 1, 6, at(0), SeriesDescription="reference")
    for k in range(N_VOLUMES):
        sent += made(make, voxels(k), k + 1, 7, at(LONG_TR_S * (k + 1)))
    if make is slices:  # the reference is never known to be whole
        asserts_run([each for each in heard(sent, N_VOLUMES) if isinstance(each, Scan)])
        return
    reference, over, *run = heard(sent, N_VOLUMES + 1)
    assert np.array_equal(voxels_of(reference), VOXELS + 9)
    assert isinstance(over, RunOver)
    asserts_run(run)


@pytest.mark.parametrize("has_times", [True, False])
@pytest.mark.parametrize("kind", ["a corrected copy", "another reconstruction"])
def test_a_run_is_not_over_because_a_copy_of_it_begins(kind: str, has_times: bool) -> None:
    sent: Files = []
    for k in range(N_VOLUMES):
        time_s = LONG_TR_S * k if has_times else None
        sent += made(mosaic, voxels(k), k + 1, 7, time_s)
        headers: dict[str, Any] = {"SeriesDescription": "copy"}
        if kind == "a corrected copy":
            headers["ImageType"] = ["ORIGINAL", "PRIMARY", "M", "MOCO", "MOSAIC"]
        sent += made(mosaic, voxels(k) + 5, k + 1, 8, time_s, **headers)
    asserts_run(heard(sent, N_VOLUMES))


def echo_series(make: Any, *, has_times: bool, names: tuple[str, str], lag: int = 0) -> Files:
    """Each echo in a series of its own; the second comes ``lag`` volumes later."""
    of_echo: list[list[Files]] = []
    for echo in range(N_ECHOES):
        of_echo.append(
            [
                made(
                    make,
                    voxels(k, echo),
                    k + 1,
                    7 + echo,
                    TR_S * k + 0.002 * echo if has_times else None,
                    SeriesDescription=names[echo],
                )
                for k in range(N_VOLUMES)
            ]
        )
        for data in sum(of_echo[-1], []):
            set_echo_time(data, echo)
    first, second = of_echo
    order = [(k, first[k]) for k in range(N_VOLUMES)] + [(k + lag + 0.5, second[k]) for k in range(N_VOLUMES)]
    return [data for _, files in sorted(order, key=lambda each: each[0]) for data in files]


NAMES = [("ep2d_bold", "ep2d_bold"), ("ep2d_bold_E00", "ep2d_bold_E01"), ("bold_e1", "bold_e2")]


@pytest.mark.parametrize("has_times", [True, False])
@pytest.mark.parametrize("names", NAMES, ids=str)
@pytest.mark.parametrize("make", [mosaic, enhanced, slices])
@pytest.mark.parametrize(("choice", "echo"), [(None, 0), (1, 0), (2, 1)])
def test_an_echo_is_chosen_among_series(
    choice: int | None,
    echo: int,
    make: Any,
    names: tuple[str, str],
    has_times: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent = echo_series(make, has_times=has_times, names=names)
    asserts_run(heard(sent, N_VOLUMES, TR_S, echo=choice), echo)
    said = [message for message in caplog.messages if "is passed over" in message]
    if choice is None:
        assert said == [
            "echoes of the series: TE 37.83 ms is passed over, TE 20 ms is followed. --echo N chooses "
            "another, --echo combine takes all"
        ]


def test_an_echo_that_comes_later_is_found() -> None:
    sent = echo_series(mosaic, has_times=True, names=NAMES[1], lag=2)
    asserts_run(heard(sent, N_VOLUMES, TR_S, echo=2), 1)


def test_echoes_of_several_series_are_combined() -> None:
    sent = echo_series(mosaic, has_times=True, names=NAMES[1])
    assert len(heard(sent, N_VOLUMES, TR_S, echo="combine")) == N_VOLUMES


def test_an_echo_is_chosen_by_the_name_of_its_series() -> None:
    sent = echo_series(mosaic, has_times=True, names=NAMES[1])
    asserts_run(heard(sent, N_VOLUMES, TR_S, series="E01"), 1)


def test_a_run_with_another_echo_time_is_another_run() -> None:
    sent: Files = []
    for series in (7, 8):
        for k in range(N_VOLUMES):
            time_s = TR_S * (k + N_VOLUMES * series)
            sent += made(mosaic, voxels(k), k + 1, series, time_s, EchoTime=ECHO_TIMES_MS[series - 7])
    first, second = np.split(np.array(heard(sent, 2 * N_VOLUMES, TR_S), dtype=object), [N_VOLUMES])
    asserts_run(list(first))
    asserts_run([each for each in second if isinstance(each, Scan)])


@pytest.mark.parametrize(
    "acquisition", [lambda k: 1, lambda k: k + 1, lambda k: k + 8], ids=["1", "k", "k+8"]
)
@pytest.mark.parametrize("first_number", [1, 8])
@pytest.mark.parametrize("make", [mosaic, slices])
def test_a_series_number_for_each_volume_counts_them(
    make: Any, first_number: int, acquisition: Callable[[int], int]
) -> None:
    """Whatever AcquisitionNumber and InstanceNumber say."""
    sent: Files = []
    for k in range(N_VOLUMES):
        files = made(make, voxels(k), 1, 8_001 + k, None, AcquisitionNumber=acquisition(k))
        for number, data in enumerate(files, start=first_number + (k if make is mosaic else 0)):
            data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MFSPLIT", *data.get("ImageType", [])[3:]]
            data.InstanceNumber = number
        sent += files
    asserts_run(heard(sent, N_VOLUMES, TR_S))
    heard_all = Heard().send(sent)
    assert len(heard_all.names) == 1


def test_volumes_in_series_of_their_own_that_nothing_joins_are_told(caplog: pytest.LogCaptureFixture) -> None:
    sent: Files = []
    for k in range(N_VOLUMES):
        sent += made(mosaic, voxels(k), 1, 8_001 + k, LONG_TR_S * k, AcquisitionNumber=1)
    heard(sent, 2)
    assert "let the scanner export mosaics or enhanced DICOM" in caplog.text
