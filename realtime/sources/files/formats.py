"""Reads what the bytes of a file hold, whatever its format. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from realtime.sources.files import dicom, nifti
from realtime.sources.files.slices import SliceFile
from realtime.sources.files.volume_file import NotWholeError, VolumeFile


class TooShortError(NotWholeError):
    """A file is too short to tell whether it is an image."""

    def __init__(self) -> None:
        super().__init__("too short to tell whether it is an image")


def parse(name: str, data: bytes) -> Sequence[VolumeFile | SliceFile]:
    """Read the volumes or slices from a file's bytes, in order; nothing if the file is not an image.

    :raises NotWholeError: when the file is incomplete
    :raises WireError: when the image is damaged or not supported
    """
    if name.lower().endswith(nifti.SUFFIXES):
        return (nifti.read(name, data),)
    if dicom.is_dicom(data):
        return dicom.read(data)
    if name.lower().endswith(dicom.SUFFIXES):
        raise NotWholeError("expected a DICOM file, found no DICM mark")
    if len(data) < dicom.MIN_BYTES:
        raise TooShortError
    return ()
