"""Pixels of DICOM images: their limits, decompression, and scaling. Pure.

Whoever writes into the folder decides what is decompressed here, so the size that each frame claims is
compared with Rows and Columns before a decoder sees it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pydicom
import pydicom.uid
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder

from realtime import wire
from realtime.errors import WireError
from realtime.sources.files.volume_file import DTYPE, NotWholeError

MAX_FRAMES = 65_536
_MAX_PACKED_FRAME_BYTES = 2**25
"""Decoders use some times as much memory as a frame."""
_JPEG = (pydicom.uid.JPEGLossless, pydicom.uid.JPEGLosslessSV1)
_JPEG_LS = (pydicom.uid.JPEGLSLossless,)
_JPEG_2000 = (pydicom.uid.JPEG2000Lossless,)
_RLE = (pydicom.uid.RLELossless,)
SYNTAXES = (
    pydicom.uid.ImplicitVRLittleEndian,
    pydicom.uid.ExplicitVRLittleEndian,
    pydicom.uid.ExplicitVRBigEndian,
    None,  # a file without meta information, whose encoding pydicom finds out
    *_JPEG,
    *_JPEG_LS,
    *_JPEG_2000,
    *_RLE,
)
"""What is read: nothing that loses precision, and nothing that is inflated without a limit."""
_SOI = b"\xff\xd8"
_SOC_SIZ = b"\xff\x4f\xff\x51"
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}

for _syntax in _JPEG:
    get_decoder(_syntax).add_plugin("numpy", ("realtime.sources.files.jpeg_lossless", "decode_frame"))


def check_pixels(dataset: pydicom.Dataset) -> None:
    """Check the size of an image before its pixels are read or decompressed.

    :raises NotWholeError: when pixels are missing at the end
    :raises WireError: codes ``file`` and ``grid``, when the image is not supported or too large
    """
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
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_encapsulated:
        _check_packed(dataset, syntax, n_frames, n_bytes // n_frames)
    elif len(dataset.PixelData) < n_bytes:
        raise NotWholeError(f"expected {n_bytes} bytes of voxels, got {len(dataset.PixelData)}")


def _check_packed(dataset: pydicom.Dataset, syntax: pydicom.uid.UID, n_frames: int, frame_bytes: int) -> None:
    if frame_bytes > _MAX_PACKED_FRAME_BYTES:
        raise WireError(
            "grid",
            f"expected at most {_MAX_PACKED_FRAME_BYTES} bytes in a compressed frame, got {frame_bytes}; "
            "turn compression off in the scanner's export",
        )
    expected, n_found = (int(dataset.Rows), int(dataset.Columns)), 0
    for frame in generate_frames(dataset.PixelData, number_of_frames=n_frames):
        n_found += 1
        if syntax in _RLE:
            if len(frame) > 2 * frame_bytes + 1_024:  # what compression makes of noise is hardly longer
                raise WireError(
                    "file", f"expected a frame of {frame_bytes} bytes, got {len(frame)} compressed"
                )
        elif (claimed := _claimed_size(frame)) != expected:
            raise WireError("file", f"expected compressed frames of {expected} pixels, got one of {claimed}")
    if n_found != n_frames:
        raise NotWholeError(f"expected {n_frames} compressed frames, got {n_found}")


def _claimed_size(frame: bytes) -> tuple[int, int] | None:
    """Return rows and columns that a JPEG, JPEG-LS or JPEG 2000 frame of one component claims to have."""
    if (at := frame.find(_SOC_SIZ, 0, 256)) >= 0:
        right, down, left, up = (int.from_bytes(frame[at + k : at + k + 4], "big") for k in (8, 12, 16, 20))
        n_components = int.from_bytes(frame[at + 40 : at + 42], "big")
        return (down - up, right - left) if n_components == 1 else None
    if not frame.startswith(_SOI):
        return None
    at = len(_SOI)
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        kind, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if kind in _START_OF_FRAME:
            n_rows, n_columns = (int.from_bytes(frame[at + k : at + k + 2], "big") for k in (5, 7))
            return (n_rows, n_columns) if frame[at + 9] == 1 else None
        at += 1 if kind == 0xFF else 2 + length
    return None


def rescaled(dataset: pydicom.Dataset, stored: NDArray[Any]) -> NDArray[Any]:
    """Return what stored pixels mean."""
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return _scaled(stored, slope, intercept, _philips_slope(dataset))


def frame_rescaled(dataset: pydicom.Dataset, stored: NDArray[Any], index: int) -> NDArray[Any]:
    """Return what the stored pixels of a frame of an enhanced image mean."""
    frame = dataset.PerFrameFunctionalGroupsSequence[index]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    name = "PixelValueTransformationSequence"
    found = (frame.get(name) or shared.get(name) or [dataset])[0]
    private = frame.get((0x2005, 0x140F))
    philips = private.value[0] if private is not None and private.VR == "SQ" and private.value else None
    slope = _philips_slope(philips) if philips is not None else None
    return _scaled(stored, found.get("RescaleSlope"), found.get("RescaleIntercept"), slope)


def _philips_slope(dataset: pydicom.Dataset) -> float | None:
    """Return Philips' ScaleSlope, which makes volumes comparable; the rescaled value is for display alone."""
    found = dataset.get((0x2005, 0x100E))
    value = found.value if found is not None else None
    if isinstance(value, bytes):
        value = float(np.frombuffer(value[:4], "<f4")[0]) if len(value) >= 4 else None
    return float(value) if value else None


def _scaled(stored: NDArray[Any], slope: Any, intercept: Any, philips_slope: float | None) -> NDArray[Any]:
    """Return (stored * slope + intercept) / (slope * philips_slope) for Philips, else the numerator."""
    slope, intercept = float(slope or 1), float(intercept or 0)
    voxels = stored
    if (slope, intercept) != (1, 0):
        voxels = stored * np.float64(slope) + np.float64(intercept)
    if philips_slope:
        voxels = voxels / np.float64(slope * philips_slope)
    return voxels.astype(DTYPE)
