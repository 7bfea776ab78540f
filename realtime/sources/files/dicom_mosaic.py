"""Mosaics of Siemens and United Imaging: all slices of a volume as the tiles of one image. Pure."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from realtime.errors import WireError
from realtime.sources.files.dicom_geometry import plane_affine, slice_distance_mm
from realtime.sources.files.dicom_identity import image_type, private

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # nibabel warns that the module is experimental; results are checked here
    from nibabel.nicom import csareader

_UNITED_IMAGING = "VFRAME"
_FRAMES = (0x0065, 0x1051)
_N_TILES = (0x0019, 0x100A)
_SIEMENS_N_TILES = (0x0019, "SIEMENS MR HEADER", 0x0A)
_WIDEST_MM = 600.0
"""No slice is wider."""
_TILE_TEXT = (0x0051, 0x100B)


def is_mosaic(dataset: pydicom.Dataset) -> bool:
    """Whether an image of one frame is a mosaic."""
    if {"MOSAIC", _UNITED_IMAGING} & image_type(dataset):
        return True
    if _csa(dataset) and csareader.get_n_mosaic(_csa(dataset)):
        return True
    n_tiles = private(dataset, *_SIEMENS_N_TILES)
    return isinstance(n_tiles, int) and n_tiles > 1


def check_is_slice(dataset: pydicom.Dataset) -> None:
    """Check that an image is no mosaic of which everything that says so was removed.

    A mosaic is wider than a scanner. Smaller ones have a multiple of the acquired matrix that no
    interpolation makes: scanners double it, those of GE more than once.

    :raises WireError: code ``file``, when it looks like one
    """
    shape = int(dataset.Rows), int(dataset.Columns)
    wide_mm = min(n * float(mm) for n, mm in zip(shape, dataset.PixelSpacing, strict=True))
    acquired = sorted(int(n) for n in dataset.get("AcquisitionMatrix") or () if n)
    edge = max(shape) // acquired[-1] if acquired else 1
    is_multiple = edge > 1 and sorted(shape) in ([edge * n for n in acquired], [edge * acquired[-1]] * 2)
    is_siemens = str(dataset.get("Manufacturer", "")).upper().startswith("SIEMENS")
    is_doubled = edge == 2 or (edge in (4, 8) and not is_siemens)
    if wide_mm > _WIDEST_MM or (is_multiple and not is_doubled):
        raise WireError(
            "file",
            f"expected an image of one slice, got {shape[0]} x {shape[1]} pixels over {wide_mm:.0f} mm, "
            f"acquired as {' x '.join(map(str, acquired)) or 'unknown'}: this is a mosaic, and what says so, "
            "MOSAIC in ImageType (0008,0008) and the CSA header, was removed on the way here. Export from "
            "the scanner itself without anonymising, or as enhanced DICOM",
        )


def untiled(dataset: pydicom.Dataset) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the slices of a mosaic.

    :returns: voxels [row, column, slice] as stored, and their affine to DICOM's LPS+ mm
    :raises WireError: code ``file``, when the header does not say how the tiles lie, or they do not fit
    """
    pixels = dataset.pixel_array
    if _UNITED_IMAGING in image_type(dataset):
        return _united_imaging(dataset, pixels)
    n_tiles, edge = _layout(dataset, pixels)
    stacked = _stacked(pixels, n_tiles, edge, edge)
    n_rows, n_columns, _ = stacked.shape
    in_patient = plane_affine(
        dataset.ImageOrientationPatient, dataset.PixelSpacing, dataset.ImagePositionPatient
    )
    # Siemens gives the place of an image as large as the mosaic with the same centre as a slice.
    in_patient[:3, 3] += in_patient[:3, 0] * (pixels.shape[0] - n_rows) / 2
    in_patient[:3, 3] += in_patient[:3, 1] * (pixels.shape[1] - n_columns) / 2
    apart_mm = dataset.get("SpacingBetweenSlices") or dataset.get("SliceThickness")
    if not apart_mm:
        raise WireError("file", "expected SpacingBetweenSlices or SliceThickness in a mosaic, found neither")
    in_patient[:3, 2] = _normal(dataset, in_patient[:3, 2]) * float(apart_mm)
    return stacked, in_patient


def n_unused_bytes(dataset: pydicom.Dataset) -> int:
    """Return how many bytes follow the last pixel of the last slice; 0 if the header does not tell."""
    n_tiles = _said_tiles(dataset)
    if not n_tiles or dataset.file_meta.TransferSyntaxUID.is_compressed:
        return 0
    n_across = math.ceil(math.sqrt(n_tiles))
    n_down = math.ceil(n_tiles / n_across) if _UNITED_IMAGING in image_type(dataset) else n_across
    n_rows_of_tiles, n_in_last_row = math.ceil(n_tiles / n_across), (n_tiles - 1) % n_across + 1
    n_rows, n_columns = dataset.Rows // n_down, dataset.Columns // n_across
    n_pixels = (n_down - n_rows_of_tiles) * n_rows * dataset.Columns + (n_across - n_in_last_row) * n_columns
    return int(n_pixels * dataset.BitsAllocated // 8)


def _stacked(pixels: NDArray[Any], n_tiles: int, n_down: int, n_across: int) -> NDArray[Any]:
    """Return tiles [row, column, slice]. :raises WireError: when so many do not fill the image"""
    if n_tiles < 1 or pixels.shape[0] % n_down or pixels.shape[1] % n_across:
        raise WireError(
            "file",
            f"expected a mosaic of {n_down} x {n_across} tiles for {n_tiles} slices, got an image of "
            f"{pixels.shape[0]} x {pixels.shape[1]} pixels, which these tiles do not fill",
        )
    n_rows, n_columns = pixels.shape[0] // n_down, pixels.shape[1] // n_across
    tiles = pixels.reshape(n_down, n_rows, n_across, n_columns).transpose(1, 3, 0, 2)
    return tiles.reshape(n_rows, n_columns, n_down * n_across)[..., :n_tiles]


def _united_imaging(
    dataset: pydicom.Dataset, pixels: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return slices and affine of a mosaic of United Imaging, which states the place of each slice."""
    frames = dataset[_FRAMES].value if _FRAMES in dataset else []
    if not frames:
        raise WireError("file", "expected (0065,1051), the places of slices, in a VFRAME image, found none")
    n_across = math.ceil(math.sqrt(len(frames)))
    stacked = _stacked(pixels, len(frames), math.ceil(len(frames) / n_across), n_across)
    positions = [frame.ImagePositionPatient for frame in frames]
    in_patient = plane_affine(dataset.ImageOrientationPatient, dataset.PixelSpacing, positions[0])
    heights_mm = np.array(positions, dtype=np.float64) @ in_patient[:3, 2]
    order = np.argsort(heights_mm)
    in_patient[:3, 3] = positions[order[0]]
    if len(frames) > 1:
        in_patient[:3, 2] *= slice_distance_mm(heights_mm[order])
    return stacked[..., order], in_patient


def _layout(dataset: pydicom.Dataset, pixels: NDArray[Any]) -> tuple[int, int]:
    """Return the number of slices, and of tiles along an edge."""
    if n_tiles := _said_tiles(dataset):
        return n_tiles, math.ceil(math.sqrt(n_tiles))
    value = dataset[_TILE_TEXT].value if _TILE_TEXT in dataset else ""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    sizes = [int(size) for size in re.findall(r"\d+", text)[:2]]
    for n_rows, n_columns in (sizes, sizes[::-1]) if len(sizes) == 2 and all(sizes) else ():
        edge = pixels.shape[0] // n_rows
        if edge and pixels.shape == (edge * n_rows, edge * n_columns):
            tiles = pixels.reshape(edge, n_rows, edge, n_columns).any(axis=(1, 3)).ravel()
            n_tiles = int(np.flatnonzero(tiles)[-1]) + 1 if tiles.any() else 0
            if n_tiles > (edge - 1) ** 2:  # otherwise the mosaic would have fewer tiles
                return n_tiles, edge
    raise WireError(
        "file",
        "expected NumberOfImagesInMosaic in the CSA header (0029,1010), or (0019,100a), of a mosaic, found "
        "neither: they were removed on the way here. Export from the scanner itself without anonymising, or "
        "as enhanced DICOM",
    )


def _said_tiles(dataset: pydicom.Dataset) -> int:
    """Return the number of slices that the header says; 0 if it does not."""
    if _UNITED_IMAGING in image_type(dataset):
        return len(dataset[_FRAMES].value) if _FRAMES in dataset else 0
    csa = _csa(dataset)
    n_tiles = csareader.get_n_mosaic(csa) if csa else None
    if not n_tiles and _N_TILES in dataset:
        n_tiles = dataset[_N_TILES].value
        if isinstance(n_tiles, bytes):  # in implicit files
            n_tiles = int.from_bytes(n_tiles, "little")
    return int(n_tiles or 0)


def _normal(dataset: pydicom.Dataset, crossed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the direction in which the slices follow each other.

    Siemens counts slices to the left, to the back and to the head, whichever is nearest.
    """
    csa = _csa(dataset)
    found = csareader.get_slice_normal(csa) if csa else None
    along = crossed @ found if found is not None else crossed[np.abs(crossed).argmax()]
    return crossed * (1 if along > 0 else -1)


def _csa(dataset: pydicom.Dataset) -> Any:
    return csareader.get_csa_header(dataset, "image")
