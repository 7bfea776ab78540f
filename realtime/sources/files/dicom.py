"""Reads DICOM files: Siemens mosaics, enhanced images and single slices. Pure."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pydicom
import pydicom.uid
from numpy.typing import NDArray

from realtime import wire
from realtime.bundle.grid import TOLERANCE_MM
from realtime.errors import WireError
from realtime.sources.files.slices import SliceFile
from realtime.sources.files.volume_file import DTYPE, NotWholeError, VolumeFile, check_shape, placed
from realtime.sources.orient import LPS_TO_RAS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # nibabel warns that the module is experimental; results are checked here
    from nibabel.nicom.dicomwrappers import wrapper_from_data

SUFFIXES = (".dcm", ".ima")
"""Files with these suffixes must be DICOM; other files are DICOM if they contain the mark."""
MARK_AT = 128
MARK = b"DICM"
MAX_FRAMES = 1_024
_META_LENGTH = slice(132, 144)
SYNTAXES = (
    pydicom.uid.ImplicitVRLittleEndian,
    pydicom.uid.ExplicitVRLittleEndian,
    pydicom.uid.ExplicitVRBigEndian,
)
IMAGES = (pydicom.uid.MRImageStorage, pydicom.uid.EnhancedMRImageStorage)


def read(data: bytes) -> VolumeFile | SliceFile:
    """Read the volume or slice from the bytes of a file.

    :raises NotWholeError: when the file is truncated
    :raises WireError: codes ``file`` and ``grid``, when the file is damaged or not supported
    """
    try:
        return _read(data)
    except WireError:
        raise
    except (EOFError, struct.error) as error:  # the file ends within an element
        raise NotWholeError(f"expected a complete DICOM file: {error}") from error
    except Exception as error:  # pydicom and nibabel raise any exception for a damaged file
        raise WireError("file", f"expected a readable DICOM volume: {error}") from error


def _read(data: bytes) -> VolumeFile | SliceFile:
    _check_syntax(data)
    dataset = pydicom.dcmread(io.BytesIO(data))
    if not {"SOPInstanceUID", "PixelData"} & set(dataset.dir()):  # SOPInstanceUID follows SOPClassUID
        raise NotWholeError("expected SOPClassUID, found the end of the file")
    if dataset.get("SOPClassUID") not in IMAGES:
        raise WireError("file", f"expected an MR image, got {dataset.get('SOPClassUID', 'none')}")
    _check_pixels(dataset)
    wrapper = wrapper_from_data(dataset)
    uid = str(dataset.get("SeriesInstanceUID", ""))
    series: dict[str, Any] = {
        "number": int(dataset.InstanceNumber),
        "series": f"{abs(int(dataset.get('SeriesNumber') or 0))}x{zlib.crc32(uid.encode()):08x}",
        "series_name": str(dataset.get("SeriesDescription", "")),
        "tr_s": _tr_s(dataset),
    }
    if not (wrapper.is_mosaic or wrapper.is_multiframe):
        return _slice(wrapper, series)
    check_shape(wrapper.image_shape)
    in_patient = _enhanced_affine(wrapper) if wrapper.is_multiframe else wrapper.affine
    voxels, affine = placed(wrapper.get_data(), LPS_TO_RAS @ in_patient)
    return VolumeFile(voxels=voxels, affine=affine, **series)


def _slice(wrapper: Any, series: dict[str, Any]) -> SliceFile:
    in_patient = np.array(wrapper.affine, dtype=np.float64)
    in_patient[:3, 2] = wrapper.slice_normal
    affine = LPS_TO_RAS @ in_patient
    if not np.isfinite(affine).all():
        raise WireError("grid", f"expected a slice with a finite position, got {affine.tolist()}")
    volume_number = wrapper.get("TemporalPositionIdentifier")
    return SliceFile(
        volume_number=int(volume_number) if volume_number else None,
        voxels=wrapper.get_data().astype(DTYPE),
        affine=affine,
        **series,
    )


def _check_syntax(data: bytes) -> None:
    """Check that neither voxels nor file are compressed, because decompression is not bounded."""
    if len(data) < _META_LENGTH.stop:
        raise NotWholeError(f"expected a DICOM file, got {len(data)} bytes")
    head = data[_META_LENGTH]
    if data[MARK_AT : MARK_AT + 4] != MARK or head[:8] != b"\2\0\0\0UL\4\0":
        raise WireError("file", "expected a DICOM file with the length of its meta information")
    end = _META_LENGTH.stop + int.from_bytes(head[8:], "little")
    if len(data) < end:
        raise NotWholeError(f"expected {end} bytes of meta information, got {len(data)}")
    meta = pydicom.filereader.read_dataset(io.BytesIO(data[_META_LENGTH.stop : end]), False, True)
    if meta.get("TransferSyntaxUID") not in SYNTAXES:
        raise WireError(
            "file",
            f"expected uncompressed DICOM, got transfer syntax {meta.get('TransferSyntaxUID')}; turn "
            "compression off in the scanner's export",
        )


def _check_pixels(dataset: pydicom.Dataset) -> None:
    if "PixelData" not in dataset:
        raise NotWholeError("expected PixelData in a DICOM file, found none")
    n_frames = int(dataset.get("NumberOfFrames") or 1)
    n_samples = int(dataset.get("SamplesPerPixel", 1))
    counts = (int(dataset.Rows), int(dataset.Columns), n_frames)
    if n_samples != 1 or not 1 <= n_frames <= MAX_FRAMES or dataset.BitsAllocated not in (8, 16, 32):
        raise WireError(
            "file",
            f"expected 1 to {MAX_FRAMES} frames of 8, 16 or 32 bits with one sample per pixel, got "
            f"{n_frames} of {dataset.BitsAllocated} bits with {n_samples}",
        )
    n_bytes = math.prod(counts) * int(dataset.BitsAllocated) // 8
    if not 0 < n_bytes <= wire.MAX_VOLUME_BYTES:
        raise WireError("grid", f"expected at most {wire.MAX_VOLUME_BYTES} bytes of voxels, got {n_bytes}")
    if len(dataset.PixelData) < n_bytes:
        raise NotWholeError(f"expected {n_bytes} bytes of voxels, got {len(dataset.PixelData)}")


def _enhanced_affine(wrapper: Any) -> NDArray[np.float64]:
    """Return the affine of an enhanced image, with the slice distance from the positions of all slices.

    nibabel 5.4 computes the distance from two frames, which may not be neighbours.
    """
    affine = np.array(wrapper.affine, dtype=np.float64)
    planes = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in wrapper.frames]
    heights_mm = np.sort([np.inner(np.array(plane, dtype=float), wrapper.slice_normal) for plane in planes])
    apart_mm = np.diff(heights_mm)
    if not np.allclose(apart_mm, apart_mm.mean(), atol=TOLERANCE_MM):
        raise WireError("grid", f"expected slices at equal distances, got {apart_mm.tolist()} mm")
    affine[:3, 2] = wrapper.slice_normal * apart_mm.mean()
    return affine


def _tr_s(dataset: pydicom.Dataset) -> float | None:
    """Return the TR in seconds; enhanced images store it in a functional group."""
    found: Any = dataset.get("RepetitionTime")
    shared = dataset.get("SharedFunctionalGroupsSequence") or [None]
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or [None]
    for group in (shared[0], frames[0]):
        timing = group.get("MRTimingAndRelatedParametersSequence") if group else None
        found = found or (timing[0].get("RepetitionTime") if timing else None)
    return float(found) / 1_000 if found else None
