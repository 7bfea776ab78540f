"""Reads NSD's betas: single-trial responses, one volume for each presentation of a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nsd.errors import BadFile, require_file
from nsd.expdesign import TRIALS_PER_SESSION
from nsd.layout import Layout
from nsd.roi import UNREADABLE, Roi, check_grid
from nsd.sessions import check_session

BETA_SCALE = 300
"""Files store int16: the response in percent signal change times this factor."""

_BLOCK = 25  # trials in memory at once (35 MB at full size)


def read_betas(layout: Layout, subject: int, session: int, roi: Roi) -> npt.NDArray[np.float32]:
    """Read a session's single-trial responses: float32 ``[750, V]`` in percent signal change.

    Rows are presentations in the order of `run_trials` for the session's `task_runs`; columns are the mask's
    voxels in C order. Reads the ``betas_fithrf_GLMdenoise_RR`` version (Allen et al. 2022, Methods) in one
    pass, with less than 100 MB of memory besides the result.

    :raises BadRequest: when the subject was not scanned in that session
    :raises MissingFile: when the file does not exist
    :raises BadFile: when the file is unreadable, has not 750 volumes, or is not unscaled int16
    :raises GridMismatch: when ROI and betas have different grids
    """
    check_session(subject, session)
    what = f"the single-trial responses of subject {subject}, session {session}"
    path = require_file(layout.betas(subject, session), what)
    image = _open(path)
    check_grid(path, image, roi, layout.roi(subject))
    betas = np.empty((TRIALS_PER_SESSION, roi.n_voxels), dtype=np.float32)
    for start in range(0, TRIALS_PER_SESSION, _BLOCK):
        stop = min(start + _BLOCK, TRIALS_PER_SESSION)
        betas[start:stop] = _read(path, image, start, stop)[roi.mask].T
    betas /= BETA_SCALE
    return betas


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
    if block.dtype.kind != "i" or block.dtype.itemsize != 2:
        raise BadFile(path, f"int16, {BETA_SCALE} times percent signal change, unscaled", block.dtype.name)
    return block
