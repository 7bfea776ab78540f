"""A DICOM file: a Siemens mosaic, an enhanced image, or a single slice. Pure: bytes in, voxels out."""

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
    warnings.simplefilter("ignore")  # that they are experimental; what they give is checked here
    from nibabel.nicom.dicomwrappers import wrapper_from_data

SUFFIXES = (".dcm", ".ima")
"""Of files that are DICOM for sure; others are where they say so inside."""
MARK_AT = 128
MARK = b"DICM"
MAX_FRAMES = 1_024
_META_LENGTH = slice(132, 144)
_SYNTAXES = (
    pydicom.uid.ImplicitVRLittleEndian,
    pydicom.uid.ExplicitVRLittleEndian,
    pydicom.uid.ExplicitVRBigEndian,
)
_IMAGES = (pydicom.uid.MRImageStorage, pydicom.uid.EnhancedMRImageStorage)


def read(data: bytes) -> VolumeFile | SliceFile:
    """The volume, or the slice of one, in a file's bytes.

    :raises NotWholeError: when its end is missing; WireError: codes ``file`` and ``grid``, for anything else
        that keeps it from being taken.
    """
    try:
        return _read(data)
    except WireError:
        raise
    except (EOFError, struct.error) as error:  # the file ends within an element
        raise NotWholeError(f"expected a whole DICOM file: {error}") from error
    except Exception as error:  # whatever pydicom and nibabel make of a damaged file
        raise WireError("file", f"no DICOM volume that can be read: {error}") from error


def _read(data: bytes) -> VolumeFile | SliceFile:
    _check_syntax(data)
    dataset = pydicom.dcmread(io.BytesIO(data))
    if not {"SOPInstanceUID", "PixelData"} & set(dataset.dir()):  # the former follows the class
        raise NotWholeError("expected what kind of image it is, found the end of the file")
    if dataset.get("SOPClassUID") not in _IMAGES:
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
        raise WireError("grid", f"expected a slice with a place, got {affine.tolist()}")
    moment = wrapper.get("TemporalPositionIdentifier")
    return SliceFile(
        moment=int(moment) if moment else None,
        voxels=wrapper.get_data().astype(DTYPE),
        affine=affine,
        **series,
    )


def _check_syntax(data: bytes) -> None:
    """See that the voxels are not compressed, and neither is the file: unpacking has no bounds."""
    if len(data) < _META_LENGTH.stop:
        raise NotWholeError(f"expected a DICOM file, got {len(data)} bytes")
    head = data[_META_LENGTH]
    if data[MARK_AT : MARK_AT + 4] != MARK or head[:8] != b"\2\0\0\0UL\4\0":
        raise WireError("file", "expected a DICOM file with the length of its meta information")
    end = _META_LENGTH.stop + int.from_bytes(head[8:], "little")
    if len(data) < end:
        raise NotWholeError(f"expected {end} bytes of meta information, got {len(data)}")
    meta = pydicom.filereader.read_dataset(io.BytesIO(data[_META_LENGTH.stop : end]), False, True)
    if meta.get("TransferSyntaxUID") not in _SYNTAXES:
        raise WireError(
            "file", f"expected uncompressed DICOM, got transfer syntax {meta.get('TransferSyntaxUID')}"
        )


def _check_pixels(dataset: pydicom.Dataset) -> None:
    if "PixelData" not in dataset:
        raise NotWholeError("expected voxels in a DICOM file, found none")
    n_frames = int(dataset.get("NumberOfFrames") or 1)
    n_samples = int(dataset.get("SamplesPerPixel", 1))
    counts = (int(dataset.Rows), int(dataset.Columns), n_frames)
    if n_samples != 1 or not 1 <= n_frames <= MAX_FRAMES or dataset.BitsAllocated not in (8, 16, 32):
        raise WireError(
            "file",
            f"expected 1 to {MAX_FRAMES} frames of whole numbers, got {n_frames} of {n_samples} samples",
        )
    n_bytes = math.prod(counts) * int(dataset.BitsAllocated) // 8
    if not 0 < n_bytes <= wire.MAX_VOLUME_BYTES:
        raise WireError("grid", f"expected at most {wire.MAX_VOLUME_BYTES} bytes of voxels, got {n_bytes}")
    if len(dataset.PixelData) < n_bytes:
        raise NotWholeError(f"expected {n_bytes} bytes of voxels, got {len(dataset.PixelData)}")


def _enhanced_affine(wrapper: Any) -> NDArray[np.float64]:
    """That of an enhanced image, with the distance of its slices from where they are.

    nibabel 5.4 takes it from two frames, which are no neighbours when the frames are in another order.
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
    """The TR, which an enhanced image has in one of its groups."""
    found: Any = dataset.get("RepetitionTime")
    shared = dataset.get("SharedFunctionalGroupsSequence") or [None]
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or [None]
    for group in (shared[0], frames[0]):
        timing = group.get("MRTimingAndRelatedParametersSequence") if group else None
        found = found or (timing[0].get("RepetitionTime") if timing else None)
    return float(found) / 1_000 if found else None
