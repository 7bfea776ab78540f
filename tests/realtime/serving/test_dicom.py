"""DICOM files like those of scanners, made here from the standard and the known format of Siemens mosaics."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from realtime.errors import WireError
from realtime.sources.files import dicom
from realtime.sources.files.counting import Image
from realtime.sources.files.dicom import read
from realtime.sources.files.series import Series
from realtime.sources.files.slices import SliceFile, Slices
from realtime.sources.files.volume_file import NotWholeError, VolumeFile

if TYPE_CHECKING:  # the fuzzer's seeds load this file alone
    from .conftest import DemoScan

VOXELS = np.random.default_rng(0).integers(0, 4_000, (6, 7, 5)).astype(np.uint16)
"""[x, y, z], RAS+."""
GRID = {"sizes_mm": (1.5, 2.0, 3.0), "origin_mm": (-4.0, 8.0, 20.0)}
AFFINE = np.array([[1.5, 0, 0, -4], [0, 2, 0, 8], [0, 0, 3, 20], [0, 0, 0, 1]])
AXIAL = [1, 0, 0, 0, 1, 0]
"""Columns run to the left, rows to the back."""


def images(voxels: np.ndarray = VOXELS) -> np.ndarray:
    """Axial slices in DICOM's order [slice, row, column]."""
    return voxels[::-1, ::-1].transpose(2, 1, 0)


def first_pixel_mm(voxels: np.ndarray = VOXELS, slice_: int = 0) -> list[float]:
    """Position in DICOM's LPS+ coordinates."""
    x, y, z = (
        o + s * n
        for o, s, n in zip(
            GRID["origin_mm"], GRID["sizes_mm"], (*np.array(voxels.shape[:2]) - 1, slice_), strict=True
        )
    )
    return [-x, -y, z]


def csa(n_slices: int) -> bytes:
    """Siemens' private header: the elements that make an image a mosaic."""
    elements = {
        b"AcquisitionMatrixText": (b"SH", [b"7*6"]),
        b"NumberOfImagesInMosaic": (b"US", [str(n_slices).encode()]),
        b"SliceNormalVector": (b"FD", [b"0.0", b"0.0", b"1.0"]),
    }
    parts = [b"SV10", b"\4\3\2\1", struct.pack("<2I", len(elements), 77)]
    for name, (kind, values) in elements.items():
        parts.append(struct.pack("<64si4s3i", name, len(values), kind, 0, len(values), 77))
        for value in values:
            text = value + b"\0"
            parts += [
                struct.pack("<4i", len(text), len(text), 77, len(text)),
                text.ljust(-(-len(text) // 4) * 4, b"\0"),
            ]
    return b"".join(parts)


def base(class_uid: str, number: int, series: int, pixels: np.ndarray, syntax: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(class_uid)
    meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{series}.{number}")
    meta.TransferSyntaxUID = UID(syntax)
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID = class_uid
    data.StudyInstanceUID = "1.2.3"
    data.SeriesNumber = series
    data.SeriesInstanceUID = f"1.2.3.{series}"
    data.SeriesDescription = f"ep2d_bold_{series}"
    data.InstanceNumber = number
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    data.PixelRepresentation = 0
    data.PixelData = pixels.astype("<u2").tobytes()
    return data


def mosaic(
    voxels: np.ndarray = VOXELS, number: int = 1, series: int = 7, syntax: str = ExplicitVRLittleEndian
) -> FileDataset:
    """All slices side by side in one image."""
    slices = images(voxels)
    edge = int(np.ceil(np.sqrt(len(slices))))
    n_rows, n_columns = slices.shape[1:]
    tiled = np.zeros((edge, edge, n_rows, n_columns), np.uint16)
    tiled.reshape(-1, n_rows, n_columns)[: len(slices)] = slices
    pixels = tiled.transpose(0, 2, 1, 3).reshape(edge * n_rows, edge * n_columns)
    data = base(MRImageStorage, number, series, pixels, syntax)
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    data.RepetitionTime = 4_000 / 3
    data.ImageOrientationPatient = AXIAL
    data.PixelSpacing = [GRID["sizes_mm"][1], GRID["sizes_mm"][0]]
    data.SpacingBetweenSlices = GRID["sizes_mm"][2]
    # Siemens gives the place of a single image as large as the mosaic with the same middle.
    left, back, up = first_pixel_mm(voxels)
    left -= GRID["sizes_mm"][0] * (edge - 1) * n_columns / 2
    back -= GRID["sizes_mm"][1] * (edge - 1) * n_rows / 2
    data.ImagePositionPatient = [left, back, up]
    data.add_new((0x0029, 0x0010), "LO", "SIEMENS CSA HEADER")
    data.add_new((0x0029, 0x1010), "OB", csa(len(slices)))
    return data


def enhanced(
    voxels: np.ndarray = VOXELS, number: int = 1, series: int = 7, order: tuple[int, ...] = ()
) -> FileDataset:
    """A frame for each slice, in any order."""
    order = order or tuple(range(voxels.shape[2]))
    data = base(EnhancedMRImageStorage, number, series, images(voxels)[list(order)], ExplicitVRLittleEndian)
    data.NumberOfFrames = len(order)
    data.DimensionIndexSequence = Sequence()
    for keyword in ("StackID", "InStackPositionNumber"):
        dimension = Dataset()
        dimension.DimensionIndexPointer = pydicom.datadict.tag_for_keyword(keyword)
        data.DimensionIndexSequence.append(dimension)
    shared, plane, measures, timing = Dataset(), Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = AXIAL
    measures.PixelSpacing = [GRID["sizes_mm"][1], GRID["sizes_mm"][0]]
    measures.SliceThickness = GRID["sizes_mm"][2]
    timing.RepetitionTime = 4_000 / 3
    shared.PlaneOrientationSequence = Sequence([plane])
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.MRTimingAndRelatedParametersSequence = Sequence([timing])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    data.PerFrameFunctionalGroupsSequence = Sequence()
    for slice_ in order:
        frame, content, position = Dataset(), Dataset(), Dataset()
        content.StackID = "1"
        content.InStackPositionNumber = slice_ + 1
        content.DimensionIndexValues = [1, slice_ + 1]
        position.ImagePositionPatient = first_pixel_mm(voxels, slice_)
        frame.FrameContentSequence = Sequence([content])
        frame.PlanePositionSequence = Sequence([position])
        data.PerFrameFunctionalGroupsSequence.append(frame)
    return data


def single(voxels: np.ndarray, slice_: int, number: int, moment: int | None, series: int = 7) -> FileDataset:
    """One slice alone."""
    data = base(MRImageStorage, number, series, images(voxels)[slice_], ExplicitVRLittleEndian)
    data.ImageOrientationPatient = AXIAL
    data.PixelSpacing = [GRID["sizes_mm"][1], GRID["sizes_mm"][0]]
    data.SliceThickness = 0.9 * GRID["sizes_mm"][2]  # there is a gap between slices
    data.ImagePositionPatient = first_pixel_mm(voxels, slice_)
    data.RepetitionTime = 4_000 / 3
    if moment is not None:
        data.TemporalPositionIdentifier = moment
    return data


def written(data: FileDataset) -> bytes:
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("make", [mosaic, enhanced, single])
def test_the_demos_run_gives_the_same_frames_as_over_our_own_messages(
    frames_over: Callable[..., dict[str, bytes]],
    demo_frames: dict[str, bytes],
    demo_scan: DemoScan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[..., FileDataset],
) -> None:
    affine = demo_scan.start.affine
    monkeypatch.setitem(GRID, "sizes_mm", tuple(affine[axis][axis] for axis in range(3)))
    monkeypatch.setitem(GRID, "origin_mm", tuple(affine[axis][3] for axis in range(3)))
    export = tmp_path / "export"
    export.mkdir()

    def send(index: int) -> None:
        voxels = demo_scan.voxels(index).astype(np.uint16)
        if make is single:
            n_slices = voxels.shape[2]
            first = 1 + index * n_slices
            files = {first + k: single(voxels, k, first + k, None) for k in range(n_slices)}
        else:
            files = {index + 1: make(voxels, index + 1)}
        for number, data in files.items():
            (export / f"001_000007_{number:06d}.dcm").write_bytes(written(data))

    assert (
        frames_over(f"folder:{export}", "sub-01_task-realtime_series-7x*", lambda address: send)
        == demo_frames
    )


@pytest.mark.parametrize(
    "data",
    [
        mosaic(),
        mosaic(syntax=ImplicitVRLittleEndian),
        enhanced(),
        enhanced(order=(4, 3, 2, 1, 0)),
        enhanced(order=(0, 2, 4, 1, 3)),
    ],
)
def test_a_dicom_volume_becomes_ras(data: FileDataset) -> None:
    volume = volume_of(data)
    assert np.allclose(volume.affine, AFFINE, atol=1e-4)
    assert np.array_equal(volume.voxels, VOXELS)
    assert volume.voxels.dtype == np.dtype("<f4")
    assert volume.voxels.flags.c_contiguous
    assert (volume.number, volume.series_name) == (1, "ep2d_bold_7")
    assert volume.tr_s == pytest.approx(4 / 3)


@pytest.mark.parametrize("has_moment", [True, False])
def test_single_slices_in_any_order_make_volumes(has_moment: bool) -> None:
    volumes = [VOXELS, VOXELS + 1, VOXELS + 2]
    series, n = Series(tr_s=1), VOXELS.shape[2]
    sent = [(volume, slice_) for volume in range(3) for slice_ in (0, 2, 4, 1, 3)]
    sent.insert(8, sent[6])  # twice
    sent[4], sent[5] = sent[5], sent[4]  # of the next volume before the last of this
    made = []
    for volume, slice_ in sent:
        data = single(volumes[volume], slice_, 1 + volume * n + slice_, volume + 1 if has_moment else None)
        made += series.add(image_of(data), "name", 0, 0)
    assert [each.index for each in made] == [0, 1, 2]
    for found, expected in zip(made, volumes, strict=True):
        assert np.array_equal(found.volume.voxels, expected)
        assert np.allclose(found.volume.affine, AFFINE, atol=1e-4)
        assert found.volume.tr_s == pytest.approx(4 / 3)


def image_of(data: FileDataset) -> Image:
    (image,) = read(written(data))
    return image


def slice_of(data: FileDataset) -> SliceFile:
    image = image_of(data)
    assert isinstance(image, SliceFile)
    return image


def volume_of(data: FileDataset) -> VolumeFile:
    image = image_of(data)
    assert isinstance(image, VolumeFile)
    return image


def test_slices_that_form_no_volume_are_refused() -> None:
    slices = Slices()
    for slice_ in (0, 1, 2, 3):
        slices.add(slice_of(single(VOXELS, slice_, 1, 1)), 1, 5)
    far = single(VOXELS, 4, 1, 1)
    far.ImagePositionPatient[2] += 2
    with pytest.raises(WireError, match="equal distances"):
        slices.add(slice_of(far), 1, 5)


def test_a_rescale_is_applied() -> None:
    data = mosaic()
    data.RescaleSlope, data.RescaleIntercept = 2, -100
    assert np.array_equal(volume_of(data).voxels, VOXELS * 2.0 - 100)


def test_series_of_one_number_in_two_sessions_are_told_apart() -> None:
    first, second = mosaic(), mosaic()
    second.StudyInstanceUID = "1.2.9"
    names = {image_of(data).series for data in (first, second, mosaic(number=2))}
    assert len(names) == 2
    assert all(name.startswith("7x") and name.isalnum() for name in names)


def test_a_truncated_file_is_incomplete() -> None:
    """A truncated file may still be written; if it were refused, it would never be read again."""
    for data in (written(mosaic()), written(enhanced()), written(single(VOXELS, 0, 1, 1))):
        for n_bytes in (*range(min(len(data), 1_200)), *range(1_200, len(data), 61), len(data) - 1):
            with pytest.raises(NotWholeError):
                read(data[:n_bytes])


def refused(data: FileDataset, **changes: object) -> str:
    for name, value in changes.items():
        setattr(data, name, value)
    with pytest.raises(WireError) as raised:
        read(written(data))
    return str(raised.value)


def test_unsupported_images_are_refused_with_a_reason() -> None:
    assert "an MR image" in refused(mosaic(), SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    assert "not compressed" in refused(mosaic(syntax=DeflatedExplicitVRLittleEndian))
    assert "16 bits with 3" in refused(mosaic(), SamplesPerPixel=3)
    assert "got 100000 of" in refused(enhanced(), NumberOfFrames=100_000)
    assert "at most" in refused(mosaic(), Rows=65_535, Columns=65_535)


def test_slices_at_unequal_distances_are_refused() -> None:
    data = enhanced()
    data.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0].ImagePositionPatient[2] += 1.5
    assert "equal distances" in refused(data)


@lru_cache
def whole(kind: str) -> bytes:
    if kind == "single":
        return written(single(VOXELS, 0, 1, 1))
    return written(mosaic() if kind == "mosaic" else enhanced())


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@settings(deadline=None, max_examples=300)
@given(
    kind=st.sampled_from(["mosaic", "enhanced", "single"]),
    spots=st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 255)), max_size=8),
    n_cut=st.sampled_from([0, 0, 0, 1, 100, 600]),
)
def test_a_damaged_file_is_a_volume_or_refused_and_nothing_else(
    kind: str, spots: list[tuple[int, int]], n_cut: int
) -> None:
    data = bytearray(whole(kind))
    for place, value in spots:
        data[place % len(data)] = value
    with contextlib.suppress(WireError):
        for held in read(bytes(data[: len(data) - n_cut])):
            assert held.voxels.ndim == (2 if isinstance(held, SliceFile) else 3)


def test_the_dicm_mark_is_at_its_standard_position() -> None:
    assert whole("mosaic")[dicom.MARK_AT :].startswith(dicom.MARK)
