"""Writes volumes as files into a watched folder, in the formats that scanners export."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from realtime import wire
from sim import dicom_images
from sim.delivery import Export, IsInterrupted, Voxels
from sim.dialects import Images, in_dialects
from sim.errors import SimError

Files = Iterator[tuple[str, bytes]]
Format = Callable[[wire.RunStart, int, Voxels], Files]


def _nifti(start: wire.RunStart, index: int, voxels: Voxels) -> Files:
    yield f"{start.run_id}_{index + 1:04d}.nii", _image(nib.Nifti1Image, start, voxels).to_bytes()


def _pair(start: wire.RunStart, index: int, voxels: Voxels) -> Files:
    image = _image(nib.Nifti1Pair, start, voxels)
    for holder in image.file_map.values():
        holder.fileobj = io.BytesIO()
    image.to_file_map()
    for kind, ending in (("header", "hdr"), ("image", "img")):
        yield f"{start.run_id}_{index + 1:04d}.{ending}", image.file_map[kind].fileobj.getvalue()


def _image(kind: Any, start: wire.RunStart, voxels: npt.NDArray[Any]) -> Any:
    image = kind(voxels, np.array(start.affine))
    image.set_sform(np.array(start.affine), 1)
    image.set_qform(np.array(start.affine), 1)
    image.header.set_xyzt_units("mm", "sec")
    if voxels.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], start.tr_s))
    return image


def _dicom(images: Images) -> Format:
    def files(start: wire.RunStart, index: int, voxels: Voxels) -> Files:
        for name, image in images(start, index, voxels):
            yield name, dicom_images.encode(image)

    return files


DICOM_FORMATS: dict[str, Images] = {
    "mosaic": dicom_images.mosaics,
    "enhanced": dicom_images.enhanced,
    "classic": dicom_images.classic,
    "split": dicom_images.split,
}
"""The images of a volume, by the name of the format."""
NIFTI_FORMATS: dict[str, Format] = {"nifti": _nifti, "pair": _pair}
"""How a volume is written, by the name of the format."""
WHOLE_RUN = "nifti-4d"
"""The format of one file that holds all volumes."""


def open_folder(folder: Path, name: str, dialects: str, start: wire.RunStart) -> Export:
    """Return what writes a run into a folder. :raises SimError: when there is no such format or dialect"""
    if name in DICOM_FORMATS:
        return FolderExport(folder, _dicom(dicom_format(name, dialects)), start)
    if dialects:
        raise SimError(f"dialect={dialects}: expected a DICOM format with it, {', '.join(DICOM_FORMATS)}")
    if name == WHOLE_RUN:
        return WholeRunExport(folder, start)
    if name not in NIFTI_FORMATS:
        known = ", ".join([*NIFTI_FORMATS, WHOLE_RUN, *DICOM_FORMATS])
        raise SimError(f"format={name}: expected one of {known}")
    return FolderExport(folder, NIFTI_FORMATS[name], start)


def dicom_format(name: str, dialects: str) -> Images:
    """Return how a volume's images are made. :raises SimError: when there is no such format or dialect"""
    if name not in DICOM_FORMATS:
        raise SimError(f"format={name}: expected one of {', '.join(DICOM_FORMATS)}")
    return in_dialects(DICOM_FORMATS[name], dialects)


class FolderExport:
    """Writes the files of a run, volume by volume, as they are acquired."""

    def __init__(self, folder: Path, write: Format, start: wire.RunStart) -> None:
        self._folder = folder
        self._write = write
        self._start = start

    def begin(self, is_interrupted: IsInterrupted) -> bool:
        """Make the folder, unless it is there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return not is_interrupted()

    def send(self, index: int, voxels: Voxels) -> None:
        """Write the files of a volume. :raises SimError: when one is there already"""
        for name, content in self._write(self._start, index, voxels):
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_new(path, content)

    def end(self) -> None:
        """Files have no end of a run."""


class WholeRunExport:
    """Writes one 4D file when the run is over, as who converts a run does."""

    def __init__(self, folder: Path, start: wire.RunStart) -> None:
        self._folder = folder
        self._start = start
        self._volumes: list[Voxels] = []

    def begin(self, is_interrupted: IsInterrupted) -> bool:
        """Make the folder, unless it is there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return not is_interrupted()

    def send(self, index: int, voxels: Voxels) -> None:
        """Keep a volume."""
        self._volumes.append(voxels)

    def end(self) -> None:
        """Write the file. :raises SimError: when it is there already"""
        if self._volumes:
            image = _image(nib.Nifti1Image, self._start, np.stack(self._volumes, axis=-1))
            packed = gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
            _write_new(self._folder / f"{self._start.run_id}_bold.nii.gz", packed)


def _write_new(path: Path, content: bytes) -> None:
    """Write a file as scanners do: under its name from the first byte on."""
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise SimError(
            f"{path}: expected no file of this run; choose another folder, or another --run-id"
        ) from error
