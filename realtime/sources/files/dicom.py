"""Reads DICOM files: Siemens mosaics, enhanced images and single slices, compressed or not. Pure."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import pydicom
import pydicom.uid

from realtime.errors import WireError
from realtime.sources.files.dicom_enhanced import volumes as enhanced_volumes
from realtime.sources.files.dicom_geometry import plane_affine, to_ras_plane
from realtime.sources.files.dicom_identity import acquired, private, series
from realtime.sources.files.dicom_mosaic import check_is_slice, is_mosaic, n_unused_bytes, untiled
from realtime.sources.files.dicom_pixels import SYNTAXES, check_pixels, rescaled
from realtime.sources.files.slices import SliceFile
from realtime.sources.files.volume_file import NotWholeError, VolumeFile, check_shape, placed
from realtime.sources.orient import LPS_TO_RAS

SUFFIXES = (".dcm", ".ima")
"""Files with these suffixes must be DICOM; other files are DICOM if their first bytes say so."""
MARK_AT = 128
MARK = b"DICM"
MIN_BYTES = MARK_AT + len(MARK)
"""Fewer bytes do not tell whether a file is DICOM."""
_TAG_BYTES = 4
_BARE_STARTS = tuple(
    bytes((group, 0, element, 0)) for group, element in ((2, 0), (2, 1), (2, 2), (2, 16))
) + tuple(bytes((8, 0, element, 0)) for element in (0, 1, 5, 8, 0x12, 0x16))
"""Files without preamble and mark begin with one of these tags."""
IMAGES = (
    pydicom.uid.MRImageStorage,
    pydicom.uid.EnhancedMRImageStorage,
    pydicom.uid.LegacyConvertedEnhancedMRImageStorage,
)
_BARE_SYNTAXES = {
    (True, True): pydicom.uid.ImplicitVRLittleEndian,
    (False, True): pydicom.uid.ExplicitVRLittleEndian,
    (False, False): pydicom.uid.ExplicitVRBigEndian,
}
"""By whether value representations are implicit and bytes little-endian."""
_GE_SLICES = (0x0021, "GEMS_RELA_01", 0x4F)
_PHILIPS_SLICES = (0x2001, "Philips Imaging DD 001", 0x18)


def is_dicom(data: bytes) -> bool:
    """Whether the first bytes of a file are those of DICOM, with or without its preamble."""
    return data[MARK_AT:MIN_BYTES] == MARK or data[:4] in _BARE_STARTS


def read(data: bytes) -> Sequence[VolumeFile | SliceFile]:
    """Read the volumes, or the slice, from the bytes of a file.

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


def _read(data: bytes) -> Sequence[VolumeFile | SliceFile]:
    _check_syntax(data)
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if not {"SOPInstanceUID", "PixelData"} & set(dataset.dir()):  # SOPInstanceUID follows SOPClassUID
        raise NotWholeError("expected SOPClassUID, found the end of the file")
    if dataset.get("SOPClassUID") not in IMAGES:
        raise WireError("file", f"expected an MR image, got {dataset.get('SOPClassUID', 'none')}")
    check_pixels(dataset)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = _BARE_SYNTAXES[bool(implicit), bool(little)]
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return enhanced_volumes(dataset)
    if is_mosaic(dataset):
        tiles, in_patient = untiled(dataset)
        check_shape(tiles.shape)
        voxels, affine = placed(rescaled(dataset, tiles), LPS_TO_RAS @ in_patient)
        said = series(dataset) | {"acquired": acquired(dataset), "n_unused_bytes": n_unused_bytes(dataset)}
        return (VolumeFile(voxels=voxels, affine=affine, **said),)
    return (_slice(dataset),)


def _slice(dataset: pydicom.Dataset) -> SliceFile:
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise WireError(
            "file", "expected PerFrameFunctionalGroupsSequence in an image of several frames, found none"
        )
    check_is_slice(dataset)
    in_patient = plane_affine(
        dataset.ImageOrientationPatient, dataset.PixelSpacing, dataset.ImagePositionPatient
    )
    n_slices = private(dataset, *_GE_SLICES) or private(dataset, *_PHILIPS_SLICES)
    return SliceFile(
        voxels=rescaled(dataset, dataset.pixel_array),
        affine=to_ras_plane(in_patient),
        n_slices=int(n_slices) if isinstance(n_slices, int | str) and int(n_slices) > 0 else None,
        distance_mm=float(dataset.get("SpacingBetweenSlices") or dataset.get("SliceThickness") or 1),
        acquired=acquired(dataset),
        **series(dataset),
    )


def _check_syntax(data: bytes) -> None:
    """Check how the file is encoded, because pydicom inflates a deflated file without a limit."""
    if len(data) < MIN_BYTES:
        raise NotWholeError(f"expected a DICOM file, got {len(data)} bytes")
    start = MIN_BYTES if data[MARK_AT:MIN_BYTES] == MARK else 0
    if not start and not is_dicom(data):
        raise WireError("file", "expected a DICOM file, found neither its mark nor a tag of group 2 or 8")
    if start == 0 and data[:1] == b"\x08":
        return  # no meta information: pydicom tells the encoding from the first element
    rest = io.BytesIO(data[start:])
    meta = pydicom.filereader.read_dataset(
        rest, False, True, stop_when=lambda tag, vr, length: tag.group != 2
    )
    if start + rest.tell() + _TAG_BYTES > len(data):
        raise NotWholeError("expected more than meta information, found the end of the file")
    syntax = meta.get("TransferSyntaxUID")
    if syntax not in SYNTAXES:
        raise WireError(
            "file",
            "expected a DICOM file that is not compressed, or without loss, got transfer syntax "
            f"{syntax}; set the scanner's export to Explicit VR Little Endian",
        )
