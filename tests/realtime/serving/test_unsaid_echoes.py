"""Echoes that no header tells apart, and what only looks like them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydicom.dataset import FileDataset

from realtime.errors import WireError
from realtime.sources.files.dicom import read
from realtime.sources.files.series import Series

from .test_dicom import enhanced, mosaic, single, written
from .test_dicom_formats import several
from .test_dicom_series import N_SLICES, Heard, voxels, with_echoes

N_VOLUMES = 6
TR_S = 4 / 3

Counters = Callable[[int, int], dict[str, Any]]


def clock(time_s: float, n_digits: int = 2) -> str:
    """A time as DICOM writes it, some hours after midnight."""
    minutes, seconds = divmod(time_s, 60)
    return (
        f"15{int(minutes):02d}{seconds:0{3 + n_digits}.{n_digits}f}"
        if n_digits
        else f"15{int(minutes):02d}{int(seconds):02d}"
    )


def slices(volume: Any, number: int) -> list[FileDataset]:
    return [single(volume, z, number, None) for z in range(N_SLICES)]


def files(make: Any, count: Counters, n_echoes: int) -> Iterator[FileDataset]:
    """Volume by volume, echo by echo; ``count`` returns the headers of a volume and echo."""
    for k in range(N_VOLUMES):
        for echo in range(n_echoes):
            made = make(voxels(k, echo), 1)
            for z, data in enumerate(made if isinstance(made, list) else [made]):
                for name, value in count(k, echo).items():
                    setattr(data, name, value)
                if make is slices:
                    data.InstanceNumber = (data.InstanceNumber - 1) * N_SLICES + z + 1
                yield data


def heard_indices(images: Iterator[FileDataset], tr_s: float = TR_S) -> tuple[list[int], str]:
    """Return the indices of the volumes that come of files, and why the series is refused."""
    series, indices, now_s = Series(tr_s), [], 0.0
    for nth, data in enumerate(images):
        (image,) = read(written(data))
        now_s += 0.01
        indices += [each.index for each in series.add(image, f"{nth}.dcm", now_s, now_s)]
    indices += [each.index for each in series.settle(now_s + 9)]
    return indices, series.refusal


UNSAID: dict[str, Counters] = {
    "acquisition is the volume": lambda k, e: {"InstanceNumber": 2 * k + e + 1, "AcquisitionNumber": k + 1},
    "acquisition is the volume, echo by echo": lambda k, e: {
        "InstanceNumber": k + 1 + 100 * e,
        "AcquisitionNumber": k + 1,
    },
    "moment is the volume": lambda k, e: {
        "InstanceNumber": 2 * k + e + 1,
        "TemporalPositionIdentifier": k + 1,
    },
    "one time": lambda k, e: {"InstanceNumber": 2 * k + e + 1, "AcquisitionTime": clock(k * TR_S + 0.25)},
    "times of echoes": lambda k, e: {
        "InstanceNumber": 2 * k + e + 1,
        "AcquisitionNumber": 2 * k + e + 1,
        "AcquisitionTime": clock(k * TR_S + 0.02 * e, 4),
    },
    "acquisition, one time for all": lambda k, e: {
        "InstanceNumber": 2 * k + e + 1,
        "AcquisitionNumber": k + 1,
        "AcquisitionTime": clock(0),
    },
    "the same numbers": lambda k, e: {"InstanceNumber": k + 1},
}


@pytest.mark.parametrize("make", [mosaic, enhanced, slices])
@pytest.mark.parametrize("name", UNSAID)
def test_echoes_that_nothing_tells_apart_are_refused_in_words(
    name: str, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    indices, refusal = heard_indices(files(make, UNSAID[name], 2))
    assert len(indices) <= 4, "echoes alternate"
    assert "nothing tells apart" in refusal
    (said,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert "Export EchoTime (0018,0081) or EchoNumbers (0018,0086)" in said


def test_three_echoes_are_refused_too() -> None:
    assert heard_indices(files(mosaic, UNSAID["acquisition is the volume"], 3))[1]


PLAIN: dict[str, Counters] = {
    "acquisition and time are constant": lambda k, e: {
        "InstanceNumber": k + 1,
        "AcquisitionNumber": 1,
        "AcquisitionTime": clock(0),
        "TemporalPositionIdentifier": 1,
    },
    "times": lambda k, e: {"InstanceNumber": k + 1, "AcquisitionTime": clock(k * TR_S + 0.25)},
    "acquisition counts pairs, times count volumes": lambda k, e: {
        "InstanceNumber": k + 1,
        "AcquisitionNumber": k // 2 + 1,
        "AcquisitionTime": clock(k * TR_S),
    },
    "whole seconds": lambda k, e: {"InstanceNumber": k + 1, "AcquisitionTime": clock(k * 0.5, 0)},
}


@pytest.mark.parametrize("make", [mosaic, enhanced, slices])
@pytest.mark.parametrize("name", PLAIN)
def test_volumes_of_one_echo_are_not_taken_for_echoes(name: str, make: Any) -> None:
    tr_s = 0.5 if name == "whole seconds" else TR_S
    assert heard_indices(files(make, PLAIN[name], 1), tr_s) == (list(range(N_VOLUMES)), "")


@pytest.mark.parametrize("has_times", [False, True])
def test_what_is_the_same_in_all_volumes_at_a_place_does_not_count_them(has_times: bool) -> None:
    """As where AcquisitionNumber counts slices, or their times are those of the first volume."""

    def made() -> Iterator[FileDataset]:
        for nth, data in enumerate(files(slices, lambda k, e: {"InstanceNumber": k + 1}, 1)):
            place = nth % N_SLICES
            data.AcquisitionNumber = place + 1
            if has_times:
                data.AcquisitionTime = clock(place * TR_S / N_SLICES, 4)
            yield data

    assert heard_indices(made()) == (list(range(N_VOLUMES)), "")


def test_a_file_that_is_written_again_is_no_echo() -> None:
    series = Series(TR_S)
    for k in range(4):
        for part in (voxels(k) * 0, voxels(k)):
            (image,) = read(written(mosaic(part, k + 1)))
            series.add(image, f"{k}.dcm", k, k)
    assert not series.refusal


def test_the_type_of_an_image_may_name_its_echo() -> None:
    images = with_echoes(mosaic, lambda k, echo: (2 * k + echo + 1, k + 1), 2)
    for nth, data in enumerate(images):
        del data.EchoTime
        data.ImageType = ["ORIGINAL", "PRIMARY", "M", f"TE{nth % 2 + 1}", "ND", "MOSAIC"]
    for echo in (1, 2):
        Heard(echo=echo).send(images).asserts_volumes(*range(4), echo=echo - 1)
    Heard().send(images).asserts_volumes(*range(4))


def test_echoes_in_one_file_that_nothing_tells_apart_are_refused() -> None:
    data = several(2)
    for frame in data.PerFrameFunctionalGroupsSequence:
        frame.FrameContentSequence[0].TemporalPositionIndex = 1
    with pytest.raises(WireError, match=r"EffectiveEchoTime \(0018,9082\)"):
        read(written(data))
