"""Which images of a DICOM series are volumes of a run, and which: the ways in which scanners count."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import product

import numpy as np
import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import MRImageStorage

from realtime.sources.files.counting import Image
from realtime.sources.files.dicom import read
from realtime.sources.files.numbering import Numbering
from realtime.sources.files.series import Series

from .test_dicom import GRID, VOXELS, base, enhanced, mosaic, single, written

N_VOLUMES = 4
N_SLICES: int = VOXELS.shape[2]
ECHO_TIMES_MS = (20.0, 37.83, 55.0)
TR_S = 1.0
SLICE_ORDER = (0, 2, 4, 1, 3)

Images = Iterable[FileDataset]


def voxels(volume: int, echo: int = 0) -> np.ndarray:
    """What each volume holds: no two are equal."""
    return VOXELS + 10 * volume + 1_000 * echo


_read: dict[int, tuple[FileDataset, Sequence[Image]]] = {}


def held_by(data: FileDataset) -> Sequence[Image]:
    """Write a file and read it; once, because tests share images."""
    if id(data) not in _read:
        _read[id(data)] = data, read(written(data))
    return _read[id(data)][1]


class Heard:
    """Sends images to a series in virtual time, and notes what comes of them."""

    def __init__(self, **options: object) -> None:
        self._passed_over = Numbering()
        self.series = Series(TR_S, numbering=self._passed_over, **options)  # type: ignore[arg-type]
        self.volumes: dict[int, np.ndarray] = {}
        self.names: set[str] = set()
        self._now_s = 0.0

    def send(self, images: Images) -> Heard:
        return self.add(image for data in images for image in held_by(data))

    def add(self, images: Iterable[Image]) -> Heard:
        for image in images:
            self._now_s += 0.01
            self.names.add(image.series)
            if image.acquired.part != "magnitude":
                self._passed_over.learn(image)
                continue
            for ready in self.series.add(image, "file", self._now_s, self._now_s):
                before = self.volumes.setdefault(ready.index, ready.volume.voxels)
                assert np.array_equal(before, ready.volume.voxels)
        return self

    def wait(self, n_tr: float) -> Heard:
        self._now_s += n_tr * TR_S
        for ready in self.series.settle(self._now_s):
            self.volumes[ready.index] = ready.volume.voxels
        return self

    def asserts_volumes(self, *indices: int, first: int = 0, echo: int = 0) -> None:
        """Expect these indices; index 0 is the volume that was sent as ``first``."""
        assert sorted(self.volumes) == list(indices)
        for index in indices:
            assert np.array_equal(self.volumes[index], voxels(index + first, echo)), index


def of_volumes(make: Callable[..., FileDataset], first_number: int = 1) -> list[FileDataset]:
    return [make(voxels(k), k + first_number) for k in range(N_VOLUMES)]


def with_uids(uids: str) -> list[FileDataset]:
    images = of_volumes(enhanced)
    for data, uid in zip(images, uids, strict=True):
        data.SeriesInstanceUID = f"1.2.3.7.{uid}"
    return images


def restarting_numbers() -> list[FileDataset]:
    """The number starts again where the UID changes; the acquisitions go on."""
    images = with_uids("1122")
    for k, data in enumerate(images):
        data.InstanceNumber, data.AcquisitionNumber = k % 2 + 1, k + 1
    return images


def split(make: Callable[[int], list[FileDataset]]) -> list[FileDataset]:
    """Every volume has a series number of its own, and its numbers start again."""
    images = []
    for k in range(N_VOLUMES):
        for number, data in enumerate(make(k), start=1):
            data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MFSPLIT", *data.get("ImageType", [])[4:]]
            data.SeriesNumber, data.SeriesInstanceUID = 7_001 + k, f"1.2.3.7.{k}"
            data.SeriesDescription = "ep2d_bold"
            data.InstanceNumber, data.AcquisitionNumber = number, k + 1
            images.append(data)
    return images


def slices_of(k: int) -> list[FileDataset]:
    return [single(voxels(k), slice_, 1, None) for slice_ in SLICE_ORDER]


def slices(number: Callable[[int, int], int], **headers: Callable[[int], int]) -> list[FileDataset]:
    """One volume after the other; ``number`` is called with volume and slice."""
    images = []
    for k in range(N_VOLUMES):
        for slice_ in SLICE_ORDER:
            data = single(voxels(k), slice_, number(k, slice_), None)
            for name, value in headers.items():
                setattr(data, name, value(k))
            images.append(data)
    return images


def by_volume(k: int, slice_: int) -> int:
    return k * N_SLICES + slice_ + 1


def through_time(k: int, slice_: int) -> int:
    return slice_ * N_VOLUMES + k + 1


def in_no_order(k: int, slice_: int) -> int:
    return random.Random(by_volume(k, slice_)).randrange(10_000)  # noqa: S311 - no secret


COUNTED = {
    "mosaics": of_volumes(mosaic),
    "enhanced": of_volumes(enhanced),
    "the UID changes once": with_uids("1122"),
    "the UID alternates": with_uids("1213"),
    "numbers start again with the UID": restarting_numbers(),
    "slices in series of their own": split(slices_of),
    "mosaics in series of their own": split(lambda k: [mosaic(voxels(k), 1)]),
    "slices, volume by volume": slices(by_volume),
    "slices, acquisitions never change": slices(by_volume, AcquisitionNumber=lambda k: 1),
    "slices, through time first": slices(through_time),
    "slices, through time, acquisitions count images": slices(through_time),
    "slices in no order, with the volume": slices(in_no_order, TemporalPositionIdentifier=lambda k: k + 1),
    "slices in no order, acquisitions": slices(in_no_order, AcquisitionNumber=lambda k: k + 1),
    "slices in no order": slices(in_no_order),
}
for _data in COUNTED["slices, through time, acquisitions count images"]:
    _data.AcquisitionNumber = _data.InstanceNumber


@pytest.mark.parametrize("images", COUNTED.values(), ids=COUNTED)
def test_every_volume_of_an_acquisition_is_heard_once_in_order(images: Images) -> None:
    heard = Heard().send(images)
    heard.asserts_volumes(*range(N_VOLUMES))
    assert len(heard.names) == 1


@pytest.mark.parametrize("images", COUNTED.values(), ids=COUNTED)
def test_a_copy_of_a_file_changes_nothing(images: Images) -> None:
    Heard().send(each for data in images for each in (data, data)).asserts_volumes(*range(N_VOLUMES))


def test_slices_that_no_counter_orders_are_told(caplog: pytest.LogCaptureFixture) -> None:
    Heard().send(COUNTED["slices in no order"])
    (said,) = caplog.messages
    assert "counted in order of arrival" in said


def test_a_series_that_was_copied_place_by_place_is_heard_when_it_is_over() -> None:
    """Philips numbers through time, and copies go by number."""
    images = sorted(COUNTED["slices, through time first"], key=lambda data: int(data.InstanceNumber))
    heard = Heard().send(images)
    heard.asserts_volumes()
    heard.wait(4.1).asserts_volumes(*range(N_VOLUMES))


@pytest.mark.parametrize(
    ("group", "creator", "element"), [(0x21, "GEMS_RELA_01", 0x4F), (0x2001, "Philips Imaging DD 001", 0x18)]
)
def test_a_volume_is_whole_with_the_slices_that_the_header_counts(
    group: int, creator: str, element: int
) -> None:
    images = slices(by_volume)
    for data in images:
        data.private_block(group, creator, create=True).add_new(element, "SL", N_SLICES)
    heard = Heard()
    for k in range(N_VOLUMES):
        heard.send(images[k * N_SLICES : (k + 1) * N_SLICES]).asserts_volumes(*range(k + 1))


def test_a_first_volume_is_whole_when_the_next_begins_or_nothing_comes() -> None:
    images = list(COUNTED["slices, volume by volume"])
    heard = Heard().send(images[:N_SLICES])
    heard.asserts_volumes()
    heard.send(images[N_SLICES : N_SLICES + 1]).asserts_volumes(0)
    waited = Heard().send(images[:N_SLICES])
    waited.wait(3.9).asserts_volumes()
    waited.wait(0.2).asserts_volumes(0)
    waited.send(images[N_SLICES:]).asserts_volumes(*range(N_VOLUMES))


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        *(("slices, volume by volume", lost) for lost in range(N_SLICES)),
        # Of numbers through time, the last slice cannot be known to be missing.
        *(
            ("slices, through time first", lost)
            for lost in range(N_SLICES)
            if SLICE_ORDER[lost] < N_SLICES - 1
        ),
    ],
)
def test_a_slice_that_is_lost_costs_its_volume_alone(name: str, lost: int) -> None:
    images = list(COUNTED[name])
    Heard().send(images[:lost] + images[lost + 1 :]).asserts_volumes(*range(1, N_VOLUMES))
    later = N_SLICES + lost
    Heard().send(images[:later] + images[later + 1 :]).asserts_volumes(0, *range(2, N_VOLUMES))


@pytest.mark.parametrize(
    "name", ["mosaics", "enhanced", "the UID changes once", "mosaics in series of their own"]
)
def test_a_volume_that_is_lost_leaves_its_index_free(name: str) -> None:
    images = list(COUNTED[name])
    Heard().send([images[0], *images[2:]]).asserts_volumes(0, *range(2, N_VOLUMES))


@pytest.mark.parametrize("name", ["slices, volume by volume", "slices in series of their own"])
def test_slices_of_a_volume_that_is_lost_leave_its_index_free(name: str) -> None:
    images = list(COUNTED[name])
    Heard().send(images[:N_SLICES] + images[2 * N_SLICES :]).asserts_volumes(0, *range(2, N_VOLUMES))


def moved(images: list[FileDataset], n_slices: int) -> list[FileDataset]:
    for position, data in enumerate(images):
        left, back, up = data.ImagePositionPatient
        data.ImagePositionPatient = [left, back, float(up) + 0.4 * (position // n_slices)]
    return images


@pytest.mark.parametrize("is_split", [True, False])
def test_slices_that_prospective_correction_moves_stay_volumes(is_split: bool) -> None:
    images = moved(split(slices_of) if is_split else slices(by_volume), N_SLICES)
    if not is_split:
        for data in images:
            data.private_block(0x21, "GEMS_RELA_01", create=True).add_new(0x4F, "SL", N_SLICES)
    Heard().send(images).asserts_volumes(*range(N_VOLUMES))


def test_the_affine_of_each_volume_is_passed_on() -> None:
    series, heights_mm = Series(TR_S), []
    for data in moved(of_volumes(mosaic), 1):
        for ready in series.add(read(written(data))[0], "file", 0, 0):
            heights_mm.append(ready.volume.affine[2][3])
    assert np.allclose(np.diff(heights_mm), 0.4, atol=1e-4)


@pytest.mark.parametrize("make", [mosaic, enhanced])
def test_a_first_number_is_learned_and_the_shift_is_told(
    make: Callable[..., FileDataset], caplog: pytest.LogCaptureFixture
) -> None:
    images = of_volumes(make, first_number=6)
    heard = Heard().send(images[:2])
    heard.asserts_volumes()  # number 5 may still come
    heard.wait(4.1).asserts_volumes(0, 1)
    heard.send(images[2:]).asserts_volumes(*range(N_VOLUMES))
    (said,) = caplog.messages
    assert "has the number 6" in said
    assert "shifted by 5" in said
    assert "--first-number 1" in said


def test_a_first_number_that_is_given_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    Heard(first_number=3).send(COUNTED["mosaics"]).asserts_volumes(0, 1, first=2)
    assert [message for message in caplog.messages if "below that of the first" in message]


def test_files_in_disorder_wait_for_the_first() -> None:
    first, second, *rest = COUNTED["mosaics"]
    heard = Heard().send([second])
    heard.asserts_volumes()
    heard.send([first]).asserts_volumes(0, 1)
    heard.send(rest).asserts_volumes(*range(N_VOLUMES))


def set_echo_time(data: FileDataset, echo: int) -> None:
    if "SharedFunctionalGroupsSequence" in data:
        timing = type(data.SharedFunctionalGroupsSequence[0])()
        timing.EffectiveEchoTime = ECHO_TIMES_MS[echo]
        data.SharedFunctionalGroupsSequence[0].MREchoSequence = [timing]
    else:
        data.EchoTime = ECHO_TIMES_MS[echo]


def with_echoes(
    make: Callable[..., FileDataset], count: Callable[[int, int], tuple[int, int | None]], n_echoes: int
) -> list[FileDataset]:
    """``count`` is called with volume and echo, and gives InstanceNumber and AcquisitionNumber."""
    images = []
    for k in range(N_VOLUMES):
        for echo in range(n_echoes):
            number, acquisition = count(k, echo)
            data = make(voxels(k, echo), number)
            set_echo_time(data, echo)
            if acquisition:
                data.AcquisitionNumber = acquisition
            images.append(data)
    return images


ECHO_COUNTS: dict[str, Callable[[int], Callable[[int, int], tuple[int, int | None]]]] = {
    "over echoes, acquisition is the volume": lambda n: lambda k, echo: (n * k + echo + 1, k + 1),
    "over echoes": lambda n: lambda k, echo: (n * k + echo + 1, n * k + echo + 1),
    "over echoes, no acquisitions": lambda n: lambda k, echo: (n * k + echo + 1, None),
    "again for each echo": lambda n: lambda k, echo: (k + 1, None),
}


@pytest.mark.parametrize("n_echoes", [2, 3])
@pytest.mark.parametrize("make", [mosaic, enhanced])
@pytest.mark.parametrize("count", ECHO_COUNTS.values(), ids=ECHO_COUNTS)
def test_one_echo_is_followed(
    make: Callable[..., FileDataset],
    count: Callable[[int], Callable[[int, int], tuple[int, int | None]]],
    n_echoes: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = with_echoes(make, count(n_echoes), n_echoes)
    Heard().send(images).asserts_volumes(*range(N_VOLUMES))
    assert [message.count("--echo N") for message in caplog.messages] == [1] * (n_echoes - 1)
    for echo in range(n_echoes):
        Heard(echo=echo + 1).send(images).asserts_volumes(*range(N_VOLUMES), echo=echo)
    caplog.clear()
    Heard(echo=n_echoes + 1).send(images).asserts_volumes()
    (said,) = caplog.messages
    assert f"none is of number {n_echoes + 1}, only TE 20 ms, TE 37.83 ms" in said


def test_the_first_echo_is_followed_even_if_it_comes_second() -> None:
    images = with_echoes(mosaic, lambda k, echo: (2 * k + echo + 1, k + 1), 2)
    for data in images:
        data.EchoNumbers = 1 + (data.EchoTime != ECHO_TIMES_MS[0])
    swapped = [images[count ^ 1] for count in range(len(images))]
    Heard().send(swapped).asserts_volumes(*range(N_VOLUMES))
    Heard().send(images[1::2]).asserts_volumes(*range(N_VOLUMES), echo=1)  # no other was exported


def test_phase_images_that_all_come_first_are_no_volumes() -> None:
    phase = of_volumes(mosaic)
    for data in phase:
        data.ImageType = ["ORIGINAL", "PRIMARY", "P", "ND", "MOSAIC"]
    for choice in (None, 1, "combine"):
        Heard(echo=choice).send([*phase, *COUNTED["mosaics"]]).wait(4.1).asserts_volumes(*range(N_VOLUMES))


@pytest.mark.parametrize("has_count", [False, True])
@pytest.mark.parametrize("is_slice_by_slice", [False, True])
def test_slices_of_several_echoes(has_count: bool, is_slice_by_slice: bool) -> None:
    """The header may say how many slices a volume has; it does not say how many echoes."""
    images = []
    for k in range(N_VOLUMES):
        for echo, slice_ in product(range(2), SLICE_ORDER):
            nth = 2 * slice_ + echo if is_slice_by_slice else echo * N_SLICES + slice_
            data = single(voxels(k, echo), slice_, 2 * k * N_SLICES + nth + 1, None)
            data.EchoTime = ECHO_TIMES_MS[echo]
            if has_count:
                philips = data.private_block(0x2001, "Philips Imaging DD 001", create=True)
                philips.add_new(0x18, "SL", N_SLICES)
            images.append(data)
    if is_slice_by_slice:
        images.sort(key=lambda data: int(data.InstanceNumber))
    Heard().send(images).asserts_volumes(*range(N_VOLUMES))
    Heard(echo=2).send(images).asserts_volumes(*range(N_VOLUMES), echo=1)
    combined = Heard(echo="combine").send(images).volumes
    assert sorted(combined) == list(range(N_VOLUMES))
    for k, volume in combined.items():
        assert ((voxels(k) < volume) & (volume < voxels(k, echo=1))).all()


@pytest.mark.parametrize("is_phase_first", [True, False])
@pytest.mark.parametrize("make", [mosaic, enhanced])
def test_phase_images_are_no_volumes(make: Callable[..., FileDataset], is_phase_first: bool) -> None:
    images = []
    for k in range(N_VOLUMES):
        magnitude = make(voxels(k), 2 * k + 1 + is_phase_first)
        phase = make(voxels(k, echo=2), 2 * k + 2 - is_phase_first)
        if make is enhanced:
            magnitude.ComplexImageComponent, phase.ComplexImageComponent = "MAGNITUDE", "PHASE"
        else:
            phase.ImageType = ["ORIGINAL", "PRIMARY", "P", "ND", "MOSAIC"]
        images += [phase, magnitude] if is_phase_first else [magnitude, phase]
    heard = Heard().send(images).wait(4.1)
    heard.asserts_volumes(*range(N_VOLUMES))


@pytest.mark.parametrize(
    "name",
    ["ImageType", "SeriesDescription", "StudyInstanceUID", "SeriesNumber"],
)
def test_what_another_acquisition_made_is_another_series(name: str) -> None:
    one, other = mosaic(), mosaic()
    changes = {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOCO", "MOSAIC"], "SeriesNumber": 8}
    setattr(other, name, changes.get(name, "9.9"))
    assert len({read(written(data))[0].series for data in (one, other)}) == 2


def test_a_series_number_for_each_volume_may_pass_the_next_thousand() -> None:
    names = set()
    for number, acquisition in ((7_001, 1), (7_999, 999), (8_000, 1_000), (8_001, 1_001)):
        data = mosaic(VOXELS, 1, number)
        data.SeriesDescription, data.AcquisitionNumber = "ep2d_bold", acquisition
        data.ImageType = ["ORIGINAL", "PRIMARY", "M", "MFSPLIT", "MOSAIC"]
        names.add(held_by(data)[0].series)
    assert len(names) == 1


@pytest.mark.parametrize("make", [mosaic, enhanced])
def test_volumes_of_a_series_beyond_1000_are_one_series(make: Callable[..., FileDataset]) -> None:
    images = of_volumes(make)
    for k, data in enumerate(images):
        data.Manufacturer, data.SeriesNumber, data.AcquisitionNumber = "SIEMENS", 1_001, k + 1
    heard = Heard().send(images)
    heard.asserts_volumes(*range(N_VOLUMES))
    assert len(heard.names) == 1


def test_coils_are_series_of_their_own() -> None:
    images = of_volumes(mosaic)[:2]
    for coil, data in zip(("H1", "H2"), images, strict=True):
        data.private_block(0x51, "SIEMENS MR HEADER", create=True).add_new(0x0F, "LO", coil)
    assert len(Heard().send(images).names) == 2


def test_a_volume_of_one_slice_takes_its_thickness_from_the_header() -> None:
    data = base(MRImageStorage, 1, 7, np.ones((1, 4, 4)), "1.2.840.10008.1.2.1")
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    data.PixelSpacing, data.SliceThickness = list(GRID["sizes_mm"][:2]), 4.5
    series = Series(TR_S)
    assert series.add(read(written(data))[0], "file", 0, 0) == []
    (only,) = series.settle(4.1)
    assert only.volume.affine[2][2] == 4.5
