"""Volumes of single slices, in whatever order the files come and however the scanner moves them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import groupby

import numpy as np
import pytest
from pydicom.dataset import FileDataset

from realtime.sources.files import begun
from realtime.sources.files.slices import SliceFile, Slices
from realtime.sources.files.volume_file import Acquired

from .test_dicom import GRID, VOXELS, single, slice_of
from .test_dicom_series import Heard, voxels

N_VOLUMES = 12
N_SLICES: int = VOXELS.shape[2]
INTERLEAVED = (0, 2, 4, 1, 3)
SPACING_MM = GRID["sizes_mm"][2]

COUNTERS: dict[str, Callable[[int, int], tuple[int, int | None, int | None]]] = {
    "number over slices": lambda k, z: (N_SLICES * k + z + 1, None, None),
    "number over slices, acquisition is the volume": lambda k, z: (N_SLICES * k + z + 1, k + 1, None),
    "number over slices, acquisition is 1": lambda k, z: (N_SLICES * k + z + 1, 1, None),
    "number over slices as acquired": lambda k, z: (N_SLICES * k + INTERLEAVED.index(z) + 1, None, None),
    "number over time": lambda k, z: (N_VOLUMES * z + k + 1, None, None),
    "number over time, acquisition is the image": lambda k, z: (N_VOLUMES * z + k + 1,) * 2 + (None,),
    "number of the slice, acquisition is the volume": lambda k, z: (z + 1, k + 1, None),
    "number of the slice, moment": lambda k, z: (z + 1, 1, k + 1),
    "numbers in no order, acquisition": lambda k, z: (1 + hash((k, z)) % 10_007, k + 1, None),
    "numbers in no order, moment": lambda k, z: (1 + hash((k, z)) % 10_007, None, k + 1),
}
"""InstanceNumber, AcquisitionNumber and TemporalPositionIdentifier of volume and slice."""


def drifting(by_mm: float) -> Callable[[FileDataset, int], None]:
    def move(data: FileDataset, k: int) -> None:
        left, back, up = data.ImagePositionPatient
        data.ImagePositionPatient = [left, back, float(up) + by_mm * k]

    return move


def jerking(data: FileDataset, k: int) -> None:
    drifting(0.4 * SPACING_MM * (k % 2))(data, 1)


def turning(data: FileDataset, k: int) -> None:
    """By half a degree a volume, about the left-right axis through a point in the head."""
    angle = np.deg2rad(0.5 * k)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    centre_mm = np.array([0.0, 30.0, -25.0])
    position_mm = turn @ (np.array(data.ImagePositionPatient, float) - centre_mm) + centre_mm
    orientation = np.array(data.ImageOrientationPatient, float).reshape(2, 3) @ turn.T
    data.ImagePositionPatient = [float(each) for each in position_mm]
    data.ImageOrientationPatient = [float(each) for each in orientation.ravel()]


MOTION: dict[str, Callable[[FileDataset, int], None]] = {
    "still": lambda data, k: None,
    "up": drifting(0.4),
    "down": drifting(-0.4),
    "far": drifting(1.2),
    "to and fro": jerking,
    "turning": turning,
}


@cache
def image_at(motion: str, k: int, z: int) -> SliceFile:
    """What a file of a slice holds, but for its counters."""
    data = single(voxels(k), z, 1, None)
    MOTION[motion](data, k)
    return slice_of(data)


def run_of(
    counters: str, motion: str, order: tuple[int, ...] = INTERLEAVED
) -> list[tuple[int, int, SliceFile]]:
    """Volume, slice and image, one volume after the other."""
    made = []
    for k in range(N_VOLUMES):
        for z in order:
            number, acquisition, moment = COUNTERS[counters](k, z)
            acquired = Acquired(acquisition=acquisition, moment=moment)
            made.append((k, z, replace(image_at(motion, k, z), number=number, acquired=acquired)))
    return made


def heard_of(images: Iterable[SliceFile]) -> Heard:
    heard = Heard()
    heard.add(images)
    return heard


def in_part(images: list[tuple[int, int, SliceFile]], n_together: int, seed: int) -> list[SliceFile]:
    """Shuffle so that no file moves far, as when several are copied at once."""
    drawn = random.Random(seed)  # noqa: S311 - no secret
    keys = {id(each): count + drawn.uniform(0, n_together) for count, each in enumerate(images)}
    return [image for _, _, image in sorted(images, key=lambda each: keys[id(each)])]


@pytest.mark.parametrize("order", [INTERLEAVED, (0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (1, 3, 0, 2, 4)], ids=str)
@pytest.mark.parametrize("motion", MOTION)
@pytest.mark.parametrize("counters", COUNTERS)
def test_slices_of_a_moving_head_are_volumes_while_they_come(
    counters: str, motion: str, order: tuple[int, ...]
) -> None:
    heard = Heard()
    images = run_of(counters, motion, order)
    for k, of_volume in groupby(images, key=lambda each: each[0]):
        heard.add(image for _, _, image in of_volume)
        if k > 2:
            heard.asserts_volumes(*range(k + 1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("motion", ["still", "up", "down", "turning"])
@pytest.mark.parametrize("counters", COUNTERS)
def test_files_of_several_volumes_may_come_mixed(counters: str, motion: str, seed: int) -> None:
    images = run_of(counters, motion)
    heard_of(in_part(images, 8, seed)).wait(4.1).asserts_volumes(*range(N_VOLUMES))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counters", COUNTERS)
def test_a_series_may_be_copied_in_any_order(counters: str, seed: int) -> None:
    images = run_of(counters, "still")
    heard_of(in_part(images, len(images), seed)).wait(4.1).asserts_volumes(*range(N_VOLUMES))
    random.Random(seed).shuffle(images)  # noqa: S311 - no secret
    heard_of(image for _, _, image in images).wait(4.1).asserts_volumes(*range(N_VOLUMES))


@pytest.mark.parametrize("motion", ["still", "to and fro", "turning"])
@pytest.mark.parametrize("counters", COUNTERS)
def test_a_series_may_be_copied_place_by_place(
    counters: str, motion: str, caplog: pytest.LogCaptureFixture
) -> None:
    images = sorted(run_of(counters, motion), key=lambda each: (each[1], each[0]))
    heard_of(image for _, _, image in images).wait(4.1).asserts_volumes(*range(N_VOLUMES))
    assert not [message for message in caplog.messages if "missing" in message]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", ["mixed", "place by place", "any"])
@pytest.mark.parametrize("counters", COUNTERS)
def test_the_header_may_count_the_slices(counters: str, order: str, seed: int) -> None:
    images = run_of(counters, "still")
    if order == "place by place":
        images.sort(key=lambda each: (each[1], each[0]))
    n_together = {"mixed": 8, "place by place": 1, "any": len(images)}[order]
    counted = [replace(image, n_slices=N_SLICES) for image in in_part(images, n_together, seed)]
    heard_of(counted).wait(4.1).asserts_volumes(*range(N_VOLUMES))


@pytest.mark.parametrize("motion", MOTION)
@pytest.mark.parametrize("counters", COUNTERS)
def test_a_pause_after_the_first_volume_changes_nothing(counters: str, motion: str) -> None:
    images = [image for _, _, image in run_of(counters, motion)]
    heard = heard_of(images[:N_SLICES]).wait(4.1)
    heard.asserts_volumes(0)
    heard.add(images[N_SLICES:]).asserts_volumes(*range(N_VOLUMES))


def test_a_pause_in_the_first_volume_does_not_make_two_of_each() -> None:
    images = [image for _, _, image in run_of("number over slices", "still", (0, 1, 2, 3, 4))]
    heard = heard_of(images[:3]).wait(4.1)
    heard.add(images[3:]).wait(4.1)
    assert {each.shape[2] for index, each in heard.volumes.items() if index} == {N_SLICES}
    assert sorted(heard.volumes) == list(range(N_VOLUMES))


@pytest.mark.parametrize("counters", COUNTERS)
def test_a_stall_in_the_first_volume_changes_nothing(counters: str) -> None:
    images = [image for _, _, image in run_of(counters, "still")]
    heard_of(images[:3]).wait(3.9).add(images[3:]).wait(4.1).asserts_volumes(*range(N_VOLUMES))


@pytest.mark.parametrize("counters", COUNTERS)
def test_a_pause_in_the_first_volume_changes_nothing_if_the_header_counts_slices(counters: str) -> None:
    images = [replace(image, n_slices=N_SLICES) for _, _, image in run_of(counters, "still")]
    heard = heard_of(images[:3]).wait(4.1)
    heard.add(images[3:]).asserts_volumes(*range(N_VOLUMES))


def a_slice(z: int) -> SliceFile:
    return image_at("still", 0, z)


def test_a_volume_that_others_pass_is_told_and_taken_if_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    slices = Slices()
    for volume in range(2, 13):  # begun, as when slices come place by place
        assert slices.add(a_slice(0), volume, N_SLICES) is None
    for volume in range(2, 13):
        whole = [slices.add(a_slice(z), volume, N_SLICES) for z in range(1, N_SLICES)]
        assert whole[-1] is not None
    assert caplog.messages == []
    slices.add(a_slice(0), 1, N_SLICES)
    for volume in range(20, 20 + begun.MAX_PASSED + 1):
        assert caplog.messages == []
        for z in range(N_SLICES):
            slices.add(a_slice(z), volume, N_SLICES)
    assert caplog.messages == ["volume 1 is missing: 1 of its 5 slices came"]
    caplog.clear()
    whole = [slices.add(a_slice(z), 1, N_SLICES) for z in range(N_SLICES)]
    assert whole[-1] is not None
    assert caplog.messages == []


def test_slices_may_come_in_the_order_of_names_without_zeros_in_front() -> None:
    made = [(k, z) for k in range(60) for z in range(N_SLICES)]
    made.sort(key=lambda each: str(N_SLICES * each[0] + each[1] + 1))
    slices = Slices()
    whole = [slices.add(a_slice(z), k + 1, N_SLICES) for k, z in made]
    assert sorted(volume.number for volume in whole if volume) == list(range(1, 61))


def test_slices_that_wait_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(begun, "MAX_BYTES", 3 * a_slice(0).voxels.nbytes)
    slices = Slices()
    for volume in range(1, 6):
        slices.add(a_slice(0), volume, N_SLICES)
    assert caplog.messages == [f"volume {volume} is missing: 1 of its 5 slices came" for volume in (1, 2)]


@pytest.mark.parametrize("by_place", [False, True])
def test_a_lost_slice_is_told_once_when_no_more_come_and_taken_if_it_does(
    by_place: bool, caplog: pytest.LogCaptureFixture
) -> None:
    images = run_of("number over slices", "still")
    (lost,) = [each for each in images if each[:2] == (7, 2)]
    images.remove(lost)
    if by_place:
        images.sort(key=lambda each: (each[1], each[0]))
    heard = heard_of(image for _, _, image in images).wait(4.1).wait(1)
    heard.asserts_volumes(*(k for k in range(N_VOLUMES) if k != 7))
    assert [text for text in caplog.messages if "missing" in text] == [
        "volume 8 is missing: 4 of its 5 slices came"
    ]
    heard.add([lost[2]]).asserts_volumes(*range(N_VOLUMES))


def test_many_volumes_that_lack_slices_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    images = [each for each in run_of("number over slices", "still") if each[0] == 0 or each[1]]
    heard_of(image for _, _, image in images).wait(4.1)
    said = [text for text in caplog.messages if "missing" in text]
    assert said[-1] == "3 more volumes of up to number 12 are missing likewise"
    assert len(said) == 9
