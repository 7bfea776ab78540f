"""Reads the experimental design: which image each of a subject's 30 000 trials shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nsd.design import N_IMAGES
from nsd.errors import BadFile, BadRequest, require_file
from nsd.layout import Layout
from nsd.sessions import TASK_RUNS_PER_SESSION, check_session

TRIALS_PER_SESSION = 750
N_SUBJECTS = 8
N_SESSIONS = 40
N_SLOTS = 75
"""4 s slots of a run, 3 volumes each; some are blank."""

N_SUBJECT_IMAGES = 10_000
N_SHARED_IMAGES = 1_000
N_REPETITIONS = 3

_SHAPES = {
    "masterordering": (1, N_SUBJECT_IMAGES * N_REPETITIONS),
    "sharedix": (1, N_SHARED_IMAGES),
    "subjectim": (N_SUBJECTS, N_SUBJECT_IMAGES),
    "stimpattern": (N_SESSIONS, TASK_RUNS_PER_SESSION, N_SLOTS),
}
_RANGES = {
    "masterordering": (1, N_SUBJECT_IMAGES),
    "sharedix": (1, N_IMAGES),
    "subjectim": (1, N_IMAGES),
    "stimpattern": (0, 1),
}


@dataclass(frozen=True, kw_only=True)
class ExpDesign:
    """The experimental design; all indices are 0-based (the file counts from 1).

    ``ordering`` int64 ``[30000]``: for each trial, which of the subject's 10 000 images it shows.
    ``subject_images`` int64 ``[8, 10000]``: 73k indices of each subject's images.
    ``shared`` int64 ``[1000]``: 73k indices of the images that all subjects saw (the test set).
    ``stimulus_slots`` bool ``[40, 12, 75]``: which 4 s slots of each task run show an image.
    """

    ordering: npt.NDArray[np.int64]
    subject_images: npt.NDArray[np.int64]
    shared: npt.NDArray[np.int64]
    stimulus_slots: npt.NDArray[np.bool_]

    def trial_images(self, subject: int) -> npt.NDArray[np.int64]:
        """Return the 73k index that each planned trial of ``subject`` shows, ``int64[30000]``."""
        check_session(subject, 1)
        images: npt.NDArray[np.int64] = self.subject_images[subject - 1, self.ordering]
        return images

    def run_trials(self, subject: int, session: int, task_run: int) -> npt.NDArray[np.int64]:
        """Return the 73k indices shown in the ``task_run``-th task run (0..11) of ``session``, in order."""
        check_session(subject, session)
        if not 0 <= task_run < TASK_RUNS_PER_SESSION:
            raise BadRequest(f"task run {task_run}: expected 0 to {TASK_RUNS_PER_SESSION - 1}")
        per_run = self.stimulus_slots[session - 1].sum(axis=1)
        first = (session - 1) * TRIALS_PER_SESSION + int(per_run[:task_run].sum())
        return self.trial_images(subject)[first : first + int(per_run[task_run])]


def read_expdesign(layout: Layout) -> ExpDesign:
    """Read ``nsd_expdesign.mat``.

    :raises MissingFile: when the file does not exist
    :raises BadFile: when it is not a MATLAB file, or a variable is missing, or has a wrong shape or range
    """
    import scipy.io  # here, because importing it takes as long as everything else together

    path = require_file(layout.expdesign(), "the experiment's design")
    try:
        content = scipy.io.loadmat(path, variable_names=list(_SHAPES))
    except (ValueError, NotImplementedError, OSError, TypeError, IndexError) as error:
        raise BadFile(path, "a MATLAB 5 file", str(error) or type(error).__name__) from error
    found: dict[str, npt.NDArray[Any]] = {}
    for name, shape in _SHAPES.items():
        value = content.get(name)
        if value is None or value.shape != shape:
            raise BadFile(path, f"{name!r} of shape {shape}", "none" if value is None else f"{value.shape}")
        low, high = _RANGES[name]
        if value.min() < low or value.max() > high:
            raise BadFile(path, f"{name!r} in {low}..{high}", f"{value.min()}..{value.max()}")
        found[name] = value
    return ExpDesign(
        ordering=found["masterordering"][0].astype(np.int64) - 1,
        subject_images=found["subjectim"].astype(np.int64) - 1,
        shared=found["sharedix"][0].astype(np.int64) - 1,
        stimulus_slots=found["stimpattern"].astype(np.bool_),
    )


def shared_images(layout: Layout) -> npt.NDArray[np.int64]:
    """Return the 0-based 73k indices of the 1 000 test images, as ``sharedix`` lists them."""
    return read_expdesign(layout).shared
