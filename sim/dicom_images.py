"""DICOM images like those of scanners: Siemens mosaics, enhanced images, classic slices. Pure.

From the standard, and from the known format of Siemens' private header. Legend: a volume is ``[x, y, z]``,
RAS+; a slice lies along x and y, its columns run towards -x and its rows towards -y, as radiologists see it.
"""

from __future__ import annotations

import datetime
import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from realtime import wire
from realtime.sources.orient import LPS_TO_RAS
from sim.errors import SimError

F64 = npt.NDArray[np.float64]
Named = Iterator[tuple[str, FileDataset]]
"""File names and images."""

DESCRIPTION = "ep2d_bold"
ECHO_MS = 30.0
_RIGHT_ANGLE = 1e-3
_BEGIN = datetime.datetime(2000, 1, 1, 9)  # noqa: DTZ001 (DICOM's times are local)


@dataclass(frozen=True)
class _Slices:
    """A volume's slices ``[z, row, column]`` and where they lie, in DICOM's LPS+ coordinates."""

    pixels: npt.NDArray[np.integer[Any]]
    affine: F64

    @property
    def orientation(self) -> list[float]:
        """Directions of rows and columns."""
        directions = -self.affine[:3, :2] / np.linalg.norm(self.affine[:3, :2], axis=0)
        return [float(value) for value in directions.T.ravel()]

    @property
    def normal(self) -> F64:
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def sizes_mm(self) -> list[float]:
        return [float(size) for size in np.linalg.norm(self.affine[:3, :3], axis=0)]

    def first_pixel_mm(self, number: int) -> F64:
        """Position of the first pixel of a slice, ``[3]``."""
        _, n_rows, n_columns = self.pixels.shape
        return np.asarray((self.affine @ [n_columns - 1, n_rows - 1, number, 1])[:3])


def _slices(start: wire.RunStart, voxels: npt.NDArray[Any]) -> _Slices:
    affine = LPS_TO_RAS @ np.array(start.affine)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=_RIGHT_ANGLE) or np.linalg.det(axes) < 0:
        raise SimError(
            f"DICOM: expected a right-handed grid with right angles, got the affine {start.affine}; "
            "use format=nifti"
        )
    pixels = np.asarray(voxels)
    for dtype in (np.uint16, np.int16):
        limits = np.iinfo(dtype)
        if limits.min <= pixels.min() and pixels.max() <= limits.max and (pixels == np.rint(pixels)).all():
            return _Slices(pixels.astype(dtype)[::-1, ::-1].transpose(2, 1, 0), affine)
    raise SimError(
        f"DICOM: expected integers of 16 bits, got {start.dtype} from {pixels.min()} to {pixels.max()}; "
        "use format=nifti"
    )


def mosaics(start: wire.RunStart, index: int, voxels: npt.NDArray[Any]) -> Named:
    """One Siemens mosaic: all slices side by side in an image."""
    slices = _slices(start, voxels)
    n_slices, n_rows, n_columns = slices.pixels.shape
    edge = int(np.ceil(np.sqrt(n_slices)))
    tiles = np.zeros((edge, edge, n_rows, n_columns), slices.pixels.dtype)
    tiles.reshape(-1, n_rows, n_columns)[:n_slices] = slices.pixels
    image = _image(start, MRImageStorage, index, tiles.transpose(0, 2, 1, 3).reshape(edge * n_rows, -1))
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    _place(image, start, slices)
    # Siemens gives the place of a single image as large as the mosaic with the same middle.
    shift = np.array([n_columns, n_rows]) * (edge - 1) / 2 * np.array(slices.sizes_mm[:2])
    across, down = np.reshape(slices.orientation, (2, 3))
    image.ImagePositionPatient = _numbers(slices.first_pixel_mm(0) - across * shift[0] - down * shift[1])
    image.add_new((0x29, 0x10), "LO", "SIEMENS CSA HEADER")
    image.add_new((0x29, 0x1010), "OB", _csa(slices))
    yield f"{_stem(start)}_{index + 1:06d}.dcm", image


def enhanced(start: wire.RunStart, index: int, voxels: npt.NDArray[Any]) -> Named:
    """One enhanced image, with a frame for each slice."""
    slices = _slices(start, voxels)
    image = _image(start, EnhancedMRImageStorage, index, slices.pixels)
    image.ImageType = ["ORIGINAL", "PRIMARY", "FMRI", "NONE"]
    image.NumberOfFrames, image.NumberOfTemporalPositions = len(slices.pixels), start.n_volumes
    image.ComplexImageComponent = "MAGNITUDE"
    counters = ("StackID", "InStackPositionNumber", "TemporalPositionIndex")
    organisation = generate_uid(entropy_srcs=["dimensions"])
    image.DimensionIndexSequence = Sequence(
        _item(DimensionIndexPointer=tag_for_keyword(name), DimensionOrganizationUID=organisation)
        for name in counters
    )
    across_mm, down_mm, apart_mm = slices.sizes_mm
    measures = _item(
        PixelSpacing=[down_mm, across_mm], SliceThickness=apart_mm, SpacingBetweenSlices=apart_mm
    )
    shared = _item(
        PlaneOrientationSequence=[_item(ImageOrientationPatient=_numbers(slices.orientation))],
        PixelMeasuresSequence=[measures],
        MRTimingAndRelatedParametersSequence=[_item(RepetitionTime=start.tr_s * 1_000)],
        MREchoSequence=[_item(EffectiveEchoTime=ECHO_MS)],
    )
    image.SharedFunctionalGroupsSequence = Sequence([shared])
    image.PerFrameFunctionalGroupsSequence = Sequence(
        _item(
            FrameContentSequence=[
                _item(
                    StackID="1",
                    InStackPositionNumber=number + 1,
                    TemporalPositionIndex=index + 1,
                    DimensionIndexValues=[1, number + 1, index + 1],
                )
            ],
            PlanePositionSequence=[_item(ImagePositionPatient=_numbers(slices.first_pixel_mm(number)))],
        )
        for number in range(len(slices.pixels))
    )
    yield f"{_stem(start)}_{index + 1:06d}.dcm", image


def classic(start: wire.RunStart, index: int, voxels: npt.NDArray[Any]) -> Named:
    """An image for each slice; they are numbered through the run."""
    slices = _slices(start, voxels)
    n_slices = len(slices.pixels)
    for number in range(n_slices):
        image = _slice(start, index, slices, number)
        image.InstanceNumber = index * n_slices + number + 1
        image.TemporalPositionIdentifier = index + 1
        image.NumberOfTemporalPositions = start.n_volumes
        yield f"{_stem(start)}_{image.InstanceNumber:06d}.dcm", image


def split(start: wire.RunStart, index: int, voxels: npt.NDArray[Any]) -> Named:
    """An image for each slice, and a series for each volume: Siemens XA's interoperability export."""
    slices = _slices(start, voxels)
    series = series_number(start) * 1_000 + index + 1
    for number in range(len(slices.pixels)):
        image = _slice(start, index, slices, number)
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "MB", "ND", "MFSPLIT"]
        image.SeriesNumber, image.InstanceNumber = series, number + 1
        image.SeriesInstanceUID = generate_uid(entropy_srcs=[start.run_id, str(series)])
        yield f"001_{series:06d}_{number + 1:06d}.dcm", image


def encode(image: FileDataset) -> bytes:
    """Return the bytes of a file."""
    buffer = io.BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def series_number(start: wire.RunStart) -> int:
    """Return the series' number: the last number in the run's name, as in ``run-03``, otherwise 1."""
    numbers = re.findall(r"\d+", start.run_id)
    return max(int(numbers[-1][-3:]), 1) if numbers else 1


def _stem(start: wire.RunStart) -> str:
    return f"001_{series_number(start):06d}"


def _slice(start: wire.RunStart, index: int, slices: _Slices, number: int) -> FileDataset:
    image = _image(start, MRImageStorage, index, slices.pixels[number], number)
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    _place(image, start, slices)
    image.ImagePositionPatient = _numbers(slices.first_pixel_mm(number))
    return image


def _image(
    start: wire.RunStart, kind: UID, index: int, pixels: npt.NDArray[np.integer[Any]], number: int = 0
) -> FileDataset:
    """Return an image with what all kinds have in common."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = kind, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[start.run_id, str(index), str(number)])
    image = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    image.SOPClassUID, image.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    image.Modality, image.Manufacturer = "MR", "Siemens Healthineers"
    image.PatientName = image.PatientID = f"sub-{start.subject:02d}"
    session = re.sub(r"_?run-?\d+$", "", start.run_id)
    image.StudyInstanceUID = generate_uid(entropy_srcs=[session])
    image.FrameOfReferenceUID = generate_uid(entropy_srcs=[session, "frame"])
    image.SeriesInstanceUID = generate_uid(entropy_srcs=[start.run_id])
    image.SeriesNumber, image.SeriesDescription = series_number(start), DESCRIPTION
    image.InstanceNumber = image.AcquisitionNumber = index + 1
    acquired = _BEGIN + datetime.timedelta(seconds=index * start.tr_s)
    image.AcquisitionDateTime = acquired.strftime("%Y%m%d%H%M%S.%f")
    image.AcquisitionDate = image.StudyDate = acquired.strftime("%Y%m%d")
    image.AcquisitionTime = acquired.strftime("%H%M%S.%f")
    image.Rows, image.Columns = pixels.shape[-2:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    image["PixelData"].VR = "OW"
    return image


def _place(image: Dataset, start: wire.RunStart, slices: _Slices) -> None:
    across_mm, down_mm, apart_mm = slices.sizes_mm
    image.ImageOrientationPatient = _numbers(slices.orientation)
    image.PixelSpacing = _numbers([down_mm, across_mm])
    image.SliceThickness = image.SpacingBetweenSlices = _numbers([apart_mm])[0]
    image.RepetitionTime, image.EchoTime, image.EchoNumbers = _numbers([start.tr_s * 1_000])[0], ECHO_MS, 1


def _numbers(values: Any) -> list[pydicom.valuerep.DSfloat]:
    """Return numbers that fit DICOM's 16 characters."""
    return [pydicom.valuerep.DSfloat(float(value), auto_format=True) for value in values]


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, Sequence(value) if name.endswith("Sequence") else value)
    return item


def _csa(slices: _Slices) -> bytes:
    """Return Siemens' private header: the elements that make an image a mosaic."""
    n_slices, n_rows, n_columns = slices.pixels.shape
    elements = {
        "AcquisitionMatrixText": ("SH", [f"{n_rows}*{n_columns}"]),
        "NumberOfImagesInMosaic": ("US", [str(n_slices)]),
        "SliceNormalVector": ("FD", [f"{value:.8f}" for value in slices.normal]),
    }
    parts = [b"SV10", b"\4\3\2\1", struct.pack("<2I", len(elements), 77)]
    for name, (kind, values) in elements.items():
        parts.append(struct.pack("<64si4s3i", name.encode(), len(values), kind.encode(), 0, len(values), 77))
        for value in values:
            text = value.encode() + b"\0"
            length = len(text)
            parts += [struct.pack("<4i", length, length, 77, length), text.ljust(-(-length // 4) * 4, b"\0")]
    return b"".join(parts)
