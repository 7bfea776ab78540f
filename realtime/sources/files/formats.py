"""Reads what the bytes of a file hold, whatever its format. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import partial

from realtime.bundle.gzip import unpack
from realtime.errors import WireError
from realtime.sources.files import dicom, nifti, par_rec
from realtime.sources.files.file_names import FileNames, Numbered
from realtime.sources.files.slices import SliceFile
from realtime.sources.files.volume_file import MAX_FILE_BYTES, NotWholeError, VolumeFile

GZIP_MARK = b"\x1f\x8b"
HEAD_BYTES = 1_024
"""The beginning of a file, which shows the formats that have a mark."""
LONGEST_DESCRIPTION = 2**26
"""A .PAR file has a line for each slice of a run."""
_PARTNERS = {".img": ".hdr", ".rec": ".par"}
"""Files of voxels, and of what describes them."""


class TooShortError(NotWholeError):
    """A file is too short to tell whether it is an image."""

    def __init__(self) -> None:
        super().__init__("too short to tell whether it is an image")


class UnnamedError(NotWholeError):
    """The names of further files are needed to tell which volume a file is."""

    def __init__(self) -> None:
        super().__init__("expected further files, to tell which number in the name is the volume's")


def suffix(name: str) -> str:
    """Return the suffix in small letters, without that of gzip."""
    plain = name.lower().removesuffix(".gz")
    return plain[plain.rfind(".") :] if "." in plain.rpartition("/")[2] else ""


def stem(name: str) -> str:
    """Return a name without its suffix."""
    plain = name[:-3] if name.lower().endswith(".gz") else name
    return plain[: len(plain) - len(suffix(plain))]


def names_beside(name: str, other: str) -> list[str]:
    """Return the names that a file may have whose name differs in the suffix only."""
    return [f"{stem(name)}{each}{packed}" for each in (other, other.upper()) for packed in ("", ".gz", ".GZ")]


def described_by(name: str) -> str | None:
    """Return the suffix of the file that describes these voxels, if they are in a file of their own."""
    return _PARTNERS.get(suffix(name))


def describes(name: str) -> str | None:
    """Return the suffix of the file whose voxels this one describes, if it holds none itself."""
    return next((voxels for voxels, header in _PARTNERS.items() if header == suffix(name)), None)


def _alone(_suffix: str, _n_most: int) -> bytes | None:
    return None


def parse(
    name: str,
    data: bytes,
    *,
    names: FileNames | None = None,
    beside: Callable[[str, int], bytes | None] = _alone,
    is_last_chance: bool = True,
) -> Sequence[VolumeFile | SliceFile]:
    """Read the volumes or slices from a file's bytes, in order; nothing if the file is not an image.

    :param name: path within the watched folder, with slashes
    :param names: what the names of other files have taught
    :param beside: returns so many bytes of the file with the same name but this suffix; None if there is none
    :param is_last_chance: whether the name must do, if it does not tell what the volume's number is
    :raises NotWholeError: when the file is incomplete
    :raises WireError: when the image is damaged or not supported
    """
    names = names or FileNames()
    kind = suffix(name)
    if data.startswith(GZIP_MARK):
        if not is_image(name, beginning(data)):
            return ()
        data = unpacked(data)
    if data and not any(data[:HEAD_BYTES]) and not described_by(name):
        raise NotWholeError("got zeros at its beginning") if is_image(name, b"") else TooShortError
    if dicom.is_dicom(data):
        return dicom.read(data)
    if kind in dicom.SUFFIXES:
        raise NotWholeError("expected a DICOM file, found no DICM mark")
    if voxels := describes(name):
        if beside(voxels, 0) is None:
            raise NotWholeError(f"expected the file with its voxels beside it, {voxels}")
        return ()
    if header := described_by(name):
        described = beside(header, LONGEST_DESCRIPTION)
        if described is None:
            raise NotWholeError(f"expected the file that describes it beside it, {header}")
        return _pair(name, described, data, names, is_last_chance=is_last_chance)
    if kind == ".nii" or nifti.is_header(data):
        layout = nifti.layout(data)
        if len(data) < layout.n_bytes:
            raise NotWholeError(f"expected {layout.n_bytes} bytes, got {len(data)}")
        return _volumes(layout, name, data, names, is_last_chance=is_last_chance)
    if len(data) < dicom.MIN_BYTES:
        raise TooShortError
    return ()


def is_image(name: str, head: bytes) -> bool:
    """Whether a file may be an image, by its name or the beginning of what it holds."""
    is_named = suffix(name) in (".nii", *dicom.SUFFIXES, *_PARTNERS, *_PARTNERS.values())
    return is_named or nifti.is_header(head) or dicom.is_dicom(head)


def beginning(packed: bytes) -> bytes:
    """Return the first decompressed bytes, or what there is of them."""
    try:
        return unpack(packed, HEAD_BYTES)
    except (EOFError, OSError, zlib.error):
        return b""


def unpacked(packed: bytes) -> bytes:
    """Decompress a file.

    :raises NotWholeError: when it is truncated
    :raises WireError: code ``file``, when it is too large
    """
    try:
        data = unpack(packed, MAX_FILE_BYTES + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise NotWholeError(f"expected a complete gzip stream: {error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise WireError("file", f"expected at most {MAX_FILE_BYTES} bytes after decompression")
    return data


def placed_by_name(names: FileNames, name: str, *, is_last_chance: bool) -> Numbered:
    """Return what a name says. :raises UnnamedError: while further names are needed to say it"""
    numbered = names.place(name, is_last_chance=is_last_chance)
    if numbered is None:
        raise UnnamedError
    return numbered


def _pair(
    name: str, described: bytes, data: bytes, names: FileNames, *, is_last_chance: bool
) -> Sequence[VolumeFile]:
    if described.startswith(GZIP_MARK):
        described = unpacked(described)
    if suffix(name) == ".rec":
        place = partial(placed_by_name, names, name, is_last_chance=is_last_chance)
        return par_rec.read(name, described, data, place)
    layout = nifti.layout(described, is_pair=True)
    if len(data) < layout.n_bytes:
        raise NotWholeError(f"expected {layout.n_bytes} bytes of voxels, got {len(data)}")
    return _volumes(layout, name, data, names, is_last_chance=is_last_chance)


def _volumes(
    layout: nifti.Layout, name: str, data: bytes, names: FileNames, *, is_last_chance: bool
) -> Sequence[VolumeFile]:
    numbered = None if layout.is_run else placed_by_name(names, name, is_last_chance=is_last_chance)
    begins = range(layout.offset, layout.n_bytes, layout.volume_bytes)
    return [
        layout.volume(memoryview(data)[begin : begin + layout.volume_bytes], nth, name, numbered)
        for nth, begin in enumerate(begins)
    ]
