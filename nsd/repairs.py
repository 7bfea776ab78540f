"""The volumes of NSD that are not what the scanner recorded.

Where a scan broke off, NSD's authors filled the series with copies of its last good volume, or joined two
scans. The files do not say so. Their code does (https://github.com/cvnlab/nsddatapaper, commit 9d878d7):

- ``main/preprocess_nsd_fixepi.m``: which raw volumes became copies of the one before them;
- ``main/nsdsetup.m``: which sessions these are, and that run 4 of subject 8's session 2 was scanned in two
  parts of 111 and 70 volumes, and both runs of subject 6 in 181 volumes;
- ``main/datafix_script3b.m``: how the two parts of that run were joined and scaled;
- ``main/preprocess_nsd_secondstageLOW.m``: how raw volumes became those of the 1.8 mm series.

Runs 5 and 6 of subject 8's session 2 were multiplied by a constant, which z-scores do not see.

**From raw volumes to volumes of the 1.8 mm series.** Raw volume k (from 0) begins at k * 1.6 s; its slices
follow in 28 steps. Volume j of the series is at j * 4/3 s by the clock of the stimulus computer, j * 4/3 *
0.999878 s by the scanner's (``epitrtweaks`` in ``nsdsetup.m``). Each slice is interpolated by piecewise
cubics (pchip; ``preprocessfmri.m`` of https://github.com/cvnlab/preprocessfmri), which read two raw volumes
on either side. A volume counts as repaired when it reads a copy in any slice.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from nsd.design import N_DESIGN_ROWS
from nsd.layout import Layout
from nsd.sessions import TR_S, RunKey

RAW_TR_S = 1.6
N_SLICE_STEPS = 28
"""Steps in which the slices of a raw volume follow each other: 84 slices, three at a time."""
SCANNER_SECONDS = 0.999878
"""Seconds of the scanner's clock in a second of the stimulus computer's."""


class Copies(NamedTuple):
    """Raw volumes of a run that are copies of the one before them, counted from 1 as in the authors' code."""

    first: int
    last: int


COPIES: dict[RunKey, Copies] = {
    RunKey(1, 2, 2): Copies(129, 152),
    RunKey(6, 31, 1): Copies(182, 188),
    RunKey(6, 31, 2): Copies(182, 188),
}
"""Runs with copies of a volume in place of lost ones."""

JOINED: tuple[RunKey, ...] = (RunKey(8, 2, 4),)
"""Runs of two scans, of which the second was scaled to the first: none of their volumes is used."""


def repaired_volumes(layout: Layout, run: RunKey) -> range:
    """The volumes of a run's 1.8 mm series, from 0, that NSD's authors repaired; empty for almost all runs.

    A synthetic data set was not repaired.
    """
    if layout.is_synthetic:
        return range(0)
    if run in JOINED:
        return range(N_DESIGN_ROWS)
    return reading(COPIES[run]) if run in COPIES else range(0)


def reading(copies: Copies) -> range:
    """The volumes of the 1.8 mm series whose interpolation reads any of some raw volumes."""
    tr_s = TR_S * SCANNER_SECONDS
    latest_slice_s = RAW_TR_S * (N_SLICE_STEPS - 1) / N_SLICE_STEPS
    # A value between raw volumes k and k + 1 reads the volumes k - 1 to k + 2.
    first, last = copies.first - 1, copies.last - 1
    begins_s = RAW_TR_S * (first - 2)
    ends_s = RAW_TR_S * (last + 2) + latest_slice_s
    return range(max(0, math.floor(begins_s / tr_s) + 1), min(N_DESIGN_ROWS, math.ceil(ends_s / tr_s)))
