"""Gives a bundle a reference volume, so that the runtime can register other sessions and grids to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import nibabel
import numpy as np

from export.atomic_folder import check_replaceable, staging
from export.errors import ExportError
from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256, read_volume
from realtime.bundle.spec import write_spec

REFERENCE_FILE = "reference.nii.gz"
LEAST_SHARE_INSIDE = 0.99
"""Share of the region that must lie in the reference's field of view, or it is of another space."""


def add_reference(bundle_folder: Path, image: Path, out: Path) -> Bundle:
    """Write a copy of a bundle with a reference volume; ``out`` is written completely or stays as it was.

    :param image: NIfTI volume of the subject's head in the space of the region, on any grid: usually the
        mean of the volumes that the decoder was trained on
    :raises BundleError: the bundle or the image cannot be read
    :raises ExportError: the image is of another space, or holds nothing
    """
    check_replaceable(out)
    bundle = Bundle.open(bundle_folder)
    voxels, affine = read_volume(image)
    if np.ptp(voxels) == 0:
        raise ExportError(f"{image}: expected a volume of a head, all its voxels are {voxels.flat[0]:g}")
    region = np.argwhere(bundle.roi_mask) @ np.array(bundle.spec.roi.affine)[:3, :3].T
    region += np.array(bundle.spec.roi.affine)[:3, 3]
    inside = _share_inside(region, voxels.shape, affine)
    if inside < LEAST_SHARE_INSIDE:
        raise ExportError(
            f"{image}: expected a volume in the space of the bundle's region, but only {100 * inside:.0f} % "
            "of the region lies in its field of view; give the mean of the volumes that the decoder was "
            "trained on"
        )
    with staging(out) as folder:
        for name in bundle.spec.files:
            shutil.copyfile(bundle.folder / name, folder / name)
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / REFERENCE_FILE)
        files = {**bundle.spec.files, REFERENCE_FILE: file_sha256(folder / REFERENCE_FILE)}
        write_spec(folder, msgspec.structs.replace(bundle.spec, reference=REFERENCE_FILE, files=files))
        Bundle.open(folder)
    return Bundle.open(out)


def _share_inside(
    positions_mm: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    shape: tuple[int, ...],
    affine: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> float:
    inverse = np.linalg.inv(affine)
    voxels = positions_mm @ inverse[:3, :3].T + inverse[:3, 3]
    return float(((voxels >= -0.5) & (voxels <= np.array(shape) - 0.5)).all(axis=1).mean())
