"""Cuts one run out of a synthetic data set: a folder in the same layout, small enough to ship.

Pictures are left out: whoever replays the run draws them from the seed in ``synthetic.json``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from nsd import Layout, Run, read_roi
from nsd.errors import require_file
from sim.errors import SimError
from sim.synthetic_json import FILE_NAME, read_provenance


def excerpt(source: Path, out: Path, *, subject: int, session: int, run: int) -> list[Path]:
    """Copy one run with its region, design, motion and provenance; return the files written, sorted.

    :raises SimError: ``source`` is not synthetic (NSD's terms forbid passing data on), or is ``out`` itself.
    :raises NsdError: the run or the region is missing or not what the layout says.
    """
    if not (source / FILE_NAME).is_file():
        raise SimError(f"{source}: expected a synthetic data set, found no {FILE_NAME}; do not pass NSD on")
    if source.resolve() == out.resolve():
        raise SimError(f"{out}: expected another folder than the data set itself")
    read_provenance(source)
    layout, target = Layout(source), Layout(out)
    found = Run(layout, subject, session, run)
    found.roi_series(read_roi(layout, subject))  # an excerpt that could not be replayed is not written
    pairs = [
        (layout.roi(subject), target.roi(subject)),
        (layout.design(*found.key), target.design(*found.key)),
        (layout.motion(*found.key), target.motion(*found.key)),
        (layout.timeseries(*found.key), target.timeseries(*found.key)),
        (source / FILE_NAME, out / FILE_NAME),
    ]
    for original, copy in pairs:
        require_file(original, "a file of the run to copy")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, copy)
    return sorted(copy for _, copy in pairs)
