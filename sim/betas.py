"""Writes betas (single-trial responses) of a synthetic subject in NSD's layout.

They are estimated from the recorded runs, as for a real subject, without use of the forward model.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from nsd import BETA_SCALE, TASK_RUNS_PER_SESSION, Layout, Roi, Run, read_roi, runs, task_runs
from nsd.expdesign import TRIALS_PER_SESSION
from sim.errors import SimError
from sim.singletrial import F64, percent_signal_change, response_library, single_trial_betas
from sim.synthesize import write_image
from sim.synthetic_json import FILE_NAME

_DESCRIPTION = b"300 x % signal change; fitted HRF, ridge; no GLMdenoise; 0 outside the region"


def write_betas(root: Path, *, subject: int, n_sessions: int | None) -> tuple[list[int], list[int]]:
    """Write the betas of sessions 1 to ``n_sessions``, or of all sessions whose runs are on disk.

    `nsd.read_betas` reads the files; voxels outside the ROI are 0. Existing files are kept; each file is
    written atomically.

    :returns: sessions that were written, and sessions that existed already
    :raises SimError: when the data set is not synthetic, or no session is complete
    :raises NsdError: when ROI or runs are missing or damaged, or NSD has no such session
    """
    if not (root / FILE_NAME).is_file():
        raise SimError(
            f"{root}: expected a synthetic data set, found no {FILE_NAME}; use NSD's own betas for NSD"
        )
    layout = Layout(root)
    sessions = _complete_sessions(layout, subject) if n_sessions is None else _first(subject, n_sessions)
    roi = read_roi(layout, subject)
    library = response_library()
    kept = [session for session in sessions if layout.betas(subject, session).is_file()]
    missing = [session for session in sessions if session not in kept]
    for session in tqdm(missing, desc=f"betas of subject {subject}", unit="session"):
        recorded = [Run(layout, subject, session, run) for run in task_runs(subject, session)]
        series = [percent_signal_change(run.roi_series(roi)) for run in recorded]
        betas = single_trial_betas(series, [run.design for run in recorded], library)
        if len(betas) != TRIALS_PER_SESSION:
            raise SimError(
                f"session {session}: expected {TRIALS_PER_SESSION} trials in its designs, found {len(betas)}"
            )
        write_image(layout.betas(subject, session), _image(betas, roi))
    return missing, kept


def _first(subject: int, n_sessions: int) -> list[int]:
    task_runs(subject, n_sessions)  # raises if NSD has no such session, before anything is written
    return list(range(1, n_sessions + 1))


def _complete_sessions(layout: Layout, subject: int) -> list[int]:
    n_runs = Counter(key.session for key in runs(layout, subject))
    complete = [session for session, n in n_runs.items() if n == TASK_RUNS_PER_SESSION]
    if not complete:
        raise SimError(
            f"{layout.root}: expected a session of subject {subject} with all {TASK_RUNS_PER_SESSION} task "
            "runs, found none; finish it with synthesize"
        )
    return complete


def _image(betas: F64, roi: Roi) -> Any:
    stored = np.zeros((*roi.mask.shape, len(betas)), dtype=np.int16)
    limits = np.iinfo(np.int16)
    stored[roi.mask] = np.clip(np.rint(BETA_SCALE * betas), limits.min, limits.max).T
    make: Any = nib.Nifti1Image  # untyped in nibabel
    image = make(stored, roi.affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = _DESCRIPTION
    return image
