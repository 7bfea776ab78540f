"""Reads NSD's betas: single-trial responses, one volume for each presentation of a session.

NSD ships them in two files with the same values (https://cvnlab.slite.page/p/6CusMRYfk0): ``.nii.gz``, and
``.hdf5`` with the data set ``betas`` in chunks of one voxel's 750 trials. MATLAB wrote the latter, x first;
h5py shows its axes reversed, ``[trial, z, y, x]``.

Legend: V voxels of the region in C order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import numpy.typing as npt

from nsd.errors import BadFile, GridMismatch, require_file
from nsd.expdesign import TRIALS_PER_SESSION
from nsd.layout import Layout
from nsd.roi import UNREADABLE, Roi, check_grid
from nsd.sessions import check_session

BETA_SCALE = 300
"""Files store int16: the response in percent signal change times this factor."""

_BLOCK = 25  # trials in memory at once (35 MB at full size)
_DATASET = "betas"


def betas_path(layout: Layout, subject: int, session: int) -> Path:
    """The file of a session's betas: ``.hdf5`` where there is no ``.nii.gz``."""
    nifti, hdf5 = (layout.betas(subject, session, ending) for ending in ("nii.gz", "hdf5"))
    return hdf5 if hdf5.is_file() and not nifti.is_file() else nifti


def read_betas(layout: Layout, subject: int, session: int, roi: Roi) -> npt.NDArray[np.float32]:
    """Read a session's single-trial responses: float32 ``[750, V]`` in percent signal change.

    Rows are presentations in the order of `run_trials` for the session's `task_runs`; columns are the mask's
    voxels in C order. Reads the ``betas_fithrf_GLMdenoise_RR`` version (Allen et al. 2022, Methods) with less
    than 100 MB of memory besides the result, from ``.nii.gz`` or ``.hdf5``.

    :raises BadRequest: when the subject was not scanned in that session
    :raises MissingFile: when neither file exists
    :raises BadFile: when the file is unreadable, has not 750 volumes, or is not unscaled int16
    :raises GridMismatch: when ROI and betas have different grids
    """
    check_session(subject, session)
    what = f"the single-trial responses of subject {subject}, session {session} (or the same in .hdf5)"
    path = require_file(betas_path(layout, subject, session), what)
    betas = np.empty((TRIALS_PER_SESSION, roi.n_voxels), dtype=np.float32)
    read = _read_hdf5 if path.suffix == ".hdf5" else _read_nifti
    read(path, roi, layout.roi(subject), betas)
    betas /= BETA_SCALE
    return betas


def _read_nifti(path: Path, roi: Roi, roi_path: Path, betas: npt.NDArray[np.float32]) -> None:
    """Fill ``betas`` [750, V] by blocks of trials, in one pass over the compressed file."""
    image = _open(path)
    check_grid(path, image, roi, roi_path)
    for start in range(0, TRIALS_PER_SESSION, _BLOCK):
        stop = min(start + _BLOCK, TRIALS_PER_SESSION)
        betas[start:stop] = _read(path, image, start, stop)[roi.mask].T


def _open(path: Path) -> Any:
    try:
        image: Any = nib.load(path, keep_file_open=True)
    except UNREADABLE as error:
        raise BadFile(path, "a NIfTI series", str(error)) from error
    if len(image.shape) != 4 or image.shape[3] != TRIALS_PER_SESSION:
        expected = f"four dimensions with {TRIALS_PER_SESSION} volumes, one for each trial"
        raise BadFile(path, expected, f"shape {image.shape}")
    return image


def _read(path: Path, image: Any, start: int, stop: int) -> npt.NDArray[np.int16]:
    try:
        block: npt.NDArray[Any] = np.asanyarray(image.dataobj[..., start:stop])
    except UNREADABLE as error:
        raise BadFile(path, f"trials {start} to {stop - 1} to be readable", str(error)) from error
    # Scaled values are read as floats; their unit is not NSD's.
    _check_unit(path, block.dtype)
    return block


def _read_hdf5(path: Path, roi: Roi, roi_path: Path, betas: npt.NDArray[np.float32]) -> None:
    """Fill ``betas`` [750, V] slice by slice, because the file's chunks hold all trials of a voxel."""
    column = np.full(roi.mask.shape, -1)
    column[roi.mask] = np.arange(roi.n_voxels)
    try:
        with h5py.File(path, "r") as file:
            stored = file[_DATASET]
            _check_stored(path, stored, roi, roi_path)
            for z in np.flatnonzero(roi.mask.any(axis=(0, 1))).tolist():
                x, y = np.nonzero(roi.mask[:, :, z])
                corner = stored[:, z, y.min() : y.max() + 1, x.min() : x.max() + 1]
                betas[:, column[x, y, z]] = corner[:, y - y.min(), x - x.min()]
    except (OSError, KeyError, RuntimeError) as error:
        raise BadFile(path, f"an HDF5 file with a data set {_DATASET!r}", str(error)) from error


def _check_stored(path: Path, stored: Any, roi: Roi, roi_path: Path) -> None:
    shape: tuple[int, ...] = getattr(stored, "shape", ())  # a group has none
    if len(shape) != 4 or shape[0] != TRIALS_PER_SESSION:
        raise BadFile(path, f"four dimensions [{TRIALS_PER_SESSION} trials, z, y, x]", f"shape {shape}")
    _check_unit(path, stored.dtype)
    grid = shape[:0:-1]
    if grid != roi.mask.shape:
        raise GridMismatch(f"{path}: expected the grid of {roi_path}, {roi.mask.shape}, found {grid}")


def _check_unit(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.kind != "i" or dtype.itemsize != 2:
        raise BadFile(path, f"int16, {BETA_SCALE} times percent signal change, unscaled", dtype.name)
