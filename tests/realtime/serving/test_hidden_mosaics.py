"""Mosaics whose headers do not say that they are, because it was removed on the way here."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import FileDataset

from realtime.sources.files.dicom import read
from realtime.sources.files.slices import SliceFile

from .test_dicom import VOXELS, mosaic, single, written
from .test_dicom_formats import asserts_whole, why_refused
from .test_dicom_series import Heard


def without_marks(**headers: Any) -> FileDataset:
    """A mosaic of which everything is removed that says that it is one."""
    data = mosaic()
    data.remove_private_tags()
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    for name, value in headers.items():
        setattr(data, name, value)
    return data


@pytest.mark.parametrize(
    "headers",
    [
        {"AcquisitionMatrix": [0, 6, 7, 0]},
        {"AcquisitionMatrix": [7, 0, 0, 6]},
        {"PixelSpacing": [40.0, 40.0]},
        {"AcquisitionMatrix": [0, 6, 7, 0], "Manufacturer": "SIEMENS"},
    ],
    ids=str,
)
def test_a_mosaic_that_does_not_say_so_is_refused(headers: dict[str, Any]) -> None:
    said = why_refused(without_marks(**headers))
    assert "this is a mosaic" in said
    assert "without anonymising, or as enhanced DICOM" in said


def test_a_mosaic_that_says_only_how_many_tiles_it_has_is_read() -> None:
    data = without_marks()
    data.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", VOXELS.shape[2])
    asserts_whole(written(data))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"AcquisitionMatrix": [0, 3, 3, 0]},
        {"AcquisitionMatrix": [6, 0, 0, 7]},
        {"AcquisitionMatrix": [0, 7, 5, 0]},
        {"PixelSpacing": [90.0, 70.0]},
    ],
    ids=str,
)
def test_a_slice_is_no_mosaic_because_it_is_interpolated_or_wide(headers: dict[str, Any]) -> None:
    data = single(VOXELS, 0, 1, None)
    for name, value in headers.items():
        setattr(data, name, value)
    (image,) = read(written(data))
    assert isinstance(image, SliceFile)


def test_volumes_of_one_slice_may_be_mosaics_and_this_is_told(caplog: pytest.LogCaptureFixture) -> None:
    images = [without_marks(InstanceNumber=number) for number in range(1, 4)]
    assert len(Heard().send(images).wait(4.1).volumes) == 3
    assert "If its images are mosaics" in caplog.text
