"""The synthetic experimental design in NSD's files: orderings, shared images, slots, image table.

It follows NSD's rules (Allen et al. 2022, Methods). There are 73 000 images, 10 000 for each of 8 subjects,
of which all subjects share 1 000. Each is shown three times over 40 sessions, at short or long distances. A
run has 75 slots. The first 3, the last 4 and 5 more between stretches of 9 to 14 images are blank. In every
second run the last image is replaced by a blank, so runs show 63 and 62 images in turn.
"""

from __future__ import annotations

import csv
import io

import numpy as np
import numpy.typing as npt

from nsd.design import N_DESIGN_ROWS, N_IMAGES
from nsd.expdesign import (
    N_REPETITIONS,
    N_SESSIONS,
    N_SHARED_IMAGES,
    N_SLOTS,
    N_SUBJECT_IMAGES,
    N_SUBJECTS,
    TRIALS_PER_SESSION,
    ExpDesign,
)
from nsd.sessions import TASK_RUNS_PER_SESSION

ROWS_PER_SLOT = 3
_LEAD_IN_SLOTS = 3
_LEAD_OUT_SLOTS = 4
_IMAGES_ODD_RUN = 63
_STRETCHES = 6
_SHORTEST_STRETCH, _LONGEST_STRETCH = 9, 14
_NEAR_SHARE = 0.5  # share of repetitions near their image's position on the circle of trials
_NEAR_SD = 0.02  # SD of their distance as a share of the circle (slightly less than one session)


def plan_experiment(seed: int) -> ExpDesign:
    """Draw the design; it is the same for all subjects of a seed."""
    rng = np.random.default_rng([seed, 0, 1])
    images = rng.permutation(N_IMAGES)
    shared = np.sort(images[:N_SHARED_IMAGES])
    own = images[N_SHARED_IMAGES:].reshape(N_SUBJECTS, -1)[:, : N_SUBJECT_IMAGES - N_SHARED_IMAGES]
    subject_images = np.concatenate([np.tile(shared, (N_SUBJECTS, 1)), own], axis=1)
    return ExpDesign(
        ordering=_draw_ordering(rng),
        subject_images=subject_images.astype(np.int64),
        shared=shared.astype(np.int64),
        stimulus_slots=_draw_slots(rng),
    )


def _draw_ordering(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Place each image's presentations on a circle, near each other or not, and order trials along it."""
    centres = rng.random((N_SUBJECT_IMAGES, 1))
    near = rng.normal(0, _NEAR_SD, (N_SUBJECT_IMAGES, N_REPETITIONS))
    anywhere = rng.random((N_SUBJECT_IMAGES, N_REPETITIONS))
    is_near = rng.random((N_SUBJECT_IMAGES, N_REPETITIONS)) < _NEAR_SHARE
    places = (centres + np.where(is_near, near, anywhere)) % 1.0
    ordering = np.argsort(places.ravel(), kind="stable") // N_REPETITIONS
    return _without_immediate_repeats(ordering)


def _without_immediate_repeats(ordering: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Swap trials so that no image is shown twice in succession."""
    ordering = ordering.copy()
    for trial in np.flatnonzero(ordering[1:] == ordering[:-1]) + 1:
        other = (trial + 50) % len(ordering)
        ordering[[trial, other]] = ordering[[other, trial]]
    return ordering


def _draw_slots(rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    slots = np.zeros((N_SESSIONS, TASK_RUNS_PER_SESSION, N_SLOTS), dtype=np.bool_)
    for session in range(N_SESSIONS):
        for run in range(TASK_RUNS_PER_SESSION):
            slots[session, run] = _draw_run_slots(rng, drop_last=run % 2 == 1)
    return slots


def _draw_run_slots(rng: np.random.Generator, *, drop_last: bool) -> npt.NDArray[np.bool_]:
    shows = np.concatenate([np.append(np.ones(n, dtype=np.bool_), False) for n in _draw_stretches(rng)])[:-1]
    if drop_last:
        shows[-1] = False
    slots = np.zeros(N_SLOTS, dtype=np.bool_)
    slots[_LEAD_IN_SLOTS : N_SLOTS - _LEAD_OUT_SLOTS] = shows
    return slots


def _draw_stretches(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw six stretch lengths of 9 to 14 that sum to 63, by rejection."""
    while True:
        lengths = rng.integers(_SHORTEST_STRETCH, _LONGEST_STRETCH + 1, _STRETCHES)
        if lengths.sum() == _IMAGES_ODD_RUN:
            return lengths


def design_rows(plan: ExpDesign, subject: int, session: int, task_run: int) -> npt.NDArray[np.int64]:
    """Return the design of the ``task_run``-th task run (0..11): ``int64[225]``, 0 or a 1-based 73k id."""
    design = np.zeros(N_DESIGN_ROWS, dtype=np.int64)
    slots = np.flatnonzero(plan.stimulus_slots[session - 1, task_run])
    design[ROWS_PER_SLOT * slots] = plan.run_trials(subject, session, task_run) + 1
    return design


def expdesign_variables(plan: ExpDesign) -> dict[str, npt.NDArray[np.float64]]:
    """Return the variables of ``nsd_expdesign.mat``, 1-based doubles like MATLAB's."""
    per_session = plan.ordering.reshape(N_SESSIONS, TRIALS_PER_SESSION)
    shown = [np.unique(session, return_counts=True)[1] for session in per_session]
    counts = [[np.count_nonzero(times == n) for times in shown] for n in range(1, N_REPETITIONS + 1)]
    variables = {
        "masterordering": plan.ordering[None] + 1,
        "basiccnt": np.array(counts),
        "sharedix": plan.shared[None] + 1,
        "subjectim": plan.subject_images + 1,
        "stimpattern": plan.stimulus_slots,
    }
    return {name: value.astype(np.float64) for name, value in variables.items()}


def stim_info_csv(plan: ExpDesign) -> str:
    """Return the text of ``nsd_stim_info_merged.csv`` with one row for each of the 73 000 images.

    ``cocoId`` is the image's 0-based number, because scenes do not come from COCO. ``subjectX_rep0..2`` are
    1-based trials, or 0 if the subject does not see the image.
    """
    shared = np.zeros(N_IMAGES, dtype=np.int64)
    shared[plan.shared] = 1
    trials = np.zeros((N_IMAGES, N_SUBJECTS, N_REPETITIONS), dtype=np.int64)
    for subject in range(N_SUBJECTS):
        order = np.argsort(plan.ordering, kind="stable").reshape(N_SUBJECT_IMAGES, N_REPETITIONS)
        trials[plan.subject_images[subject], subject] = order + 1
    sees = (trials[:, :, 0] > 0).astype(np.int64)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    subjects = range(1, N_SUBJECTS + 1)
    repetitions = [f"subject{s}_rep{r}" for s in subjects for r in range(N_REPETITIONS)]
    columns = ["cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000"]
    writer.writerow(["", *columns, *(f"subject{s}" for s in subjects), *repetitions])
    for image in range(N_IMAGES):
        fixed = [image, image, "synthetic", "(0, 0, 0, 0)", 0, image, False, False, bool(shared[image])]
        writer.writerow([*fixed, *sees[image].tolist(), *trials[image].ravel().tolist()])
    return text.getvalue()
