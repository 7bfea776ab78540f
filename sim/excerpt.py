"""Copies one run of a synthetic data set to a folder in the same layout that is small enough to ship.

Pictures are omitted: a replay draws them from the seed in ``synthetic.json``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from nsd import Layout, Run, read_roi
from nsd.errors import require_file
from sim.errors import SimError
from sim.raw import ENDINGS
from sim.synthetic_json import FILE_NAME, read_provenance


def excerpt(source: Path, out: Path, *, subject: int, session: int, run: int) -> list[Path]:
    """Copy one run with its ROI, design, motion, provenance and raw side; return the written files, sorted.

    :raises SimError: when ``source`` is not synthetic (NSD's terms forbid redistribution), or equals ``out``
    :raises NsdError: when the run or the ROI is missing or invalid
    """
    if not (source / FILE_NAME).is_file():
        raise SimError(
            f"{source}: expected a synthetic data set, found no {FILE_NAME}; NSD must not be redistributed"
        )
    if source.resolve() == out.resolve():
        raise SimError(f"{out}: expected another folder than the data set itself")
    read_provenance(source)
    layout, target = Layout(source), Layout(out)
    found = Run(layout, subject, session, run)
    found.roi_series(read_roi(layout, subject))  # raises before anything is written if it cannot be replayed
    pairs = [
        (layout.roi(subject), target.roi(subject)),
        (layout.design(*found.key), target.design(*found.key)),
        (layout.motion(*found.key), target.motion(*found.key)),
        (layout.timeseries(*found.key), target.timeseries(*found.key)),
        (source / FILE_NAME, out / FILE_NAME),
    ]
    if layout.mean(subject).is_file():
        pairs.append((layout.mean(subject), target.mean(subject)))
    raw = [(layout.raw(*found.key, ending), target.raw(*found.key, ending)) for ending in ENDINGS]
    pairs += [pair for pair in raw if pair[0].is_file()]
    for original, copy in pairs:
        require_file(original, "a file of the run to copy")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, copy)
    return sorted(copy for _, copy in pairs)
