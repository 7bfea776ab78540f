"""What the recorder needs of a bundle: its spec, its identity, and whether it can decode a run.

Nothing here opens a graph, so that a process which only records stays small.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from realtime.bundle.grid import same_grid
from realtime.bundle.regular_file import read_bytes
from realtime.bundle.spec import MAX_SPEC_BYTES, SPEC_FILE, Spec, Window, decode_spec
from realtime.errors import WireError
from realtime.wire import RunStart

TR_TOLERANCE = 0.005
"""Allowed relative difference of a scanner's TR from the bundle's; some scanners round 4/3 s to 1.33 s."""
MOST_APART = 2
"""A run is resampled in time if its TR is at most this many times the decoder's, or this part of it."""
_ROUNDING_VOLUMES = 1e-6


def read_spec(folder: Path) -> tuple[Spec, str]:
    """The spec of a bundle and its SHA-256, which identifies the whole bundle.

    The files that the spec lists are not read.

    :raises BundleError: when there is no bundle, or its spec is too new or inconsistent
    """
    encoded = read_bytes(folder / SPEC_FILE, MAX_SPEC_BYTES)
    return decode_spec(encoded, folder / SPEC_FILE), hashlib.sha256(encoded).hexdigest()


def is_on_grid(spec: Spec, start: RunStart) -> bool:
    """Whether the volumes of a run lie on the grid of the bundle's region."""
    return start.shape == spec.roi.shape and same_grid(start.affine, spec.roi.affine, spec.roi.shape)


def resampled_to_s(spec: Spec, start: RunStart) -> float | None:
    """The decoder's TR, to which a run with another TR is resampled in time; None where it has the same."""
    return None if abs(start.tr_s - spec.tr_s) <= TR_TOLERANCE * spec.tr_s else spec.tr_s


def can_resample(spec: Spec, start: RunStart) -> bool:
    """Whether the TR of a run is near enough to the decoder's to be resampled to it."""
    most_apart = MOST_APART * (1 + TR_TOLERANCE)
    return spec.tr_s / most_apart <= start.tr_s <= spec.tr_s * most_apart


def delay_at(window: Window, tr_s: float, scanner_tr_s: float) -> tuple[int, float]:
    """Where a decoder's window ends when the scanner's TR is another: at the first volume that is not before.

    :returns: volumes of the scanner from a picture's onset to that volume, and by how many seconds that is
        later than in training: from 0 to less than the scanner's TR
    """
    end = window.delay_volumes * tr_s / scanner_tr_s
    delay_volumes = math.ceil(end - _ROUNDING_VOLUMES)
    return delay_volumes, max(0.0, delay_volumes - end) * scanner_tr_s


def check_run(spec: Spec, start: RunStart, *, resamples: bool = False) -> None:
    """Check that a bundle can decode a run; one with a reference volume takes any grid.

    :param resamples: whether a run with another TR is resampled in time
    :raises WireError: codes ``subject``, ``grid`` and ``tr``, when these differ from the bundle's
    """
    if start.subject != spec.subject:
        raise WireError(
            "subject",
            f"expected subject {spec.subject} of bundle {spec.name!r}, got subject {start.subject}; "
            "start the runtime with that subject's bundle",
        )
    if spec.reference is None and not is_on_grid(spec, start):
        raise WireError(
            "grid",
            f"expected volumes on the grid {spec.roi.shape} with affine {spec.roi.affine}, got "
            f"{start.shape} with {start.affine}; send volumes on the grid of the subject's region, or give "
            "the bundle a reference volume, so that others are registered to it: python -m export reference",
        )
    if resampled_to_s(spec, start):
        _check_resampling(spec, start, resamples=resamples)


def _check_resampling(spec: Spec, start: RunStart, *, resamples: bool) -> None:
    headers = "give --tr if the scanner's headers are wrong, or serve a bundle that was trained for this TR"
    if not can_resample(spec, start):
        raise WireError(
            "tr",
            f"expected the TR the decoder was trained for, {spec.tr_s:.4f} s, or one from "
            f"{spec.tr_s / MOST_APART:.4f} to {spec.tr_s * MOST_APART:.4f} s to resample to it, got "
            f"{start.tr_s:.4f} s; {headers}",
        )
    if not resamples:
        raise WireError(
            "tr",
            f"expected the TR the decoder was trained for, {spec.tr_s:.4f} s, got {start.tr_s:.4f} s; give "
            f"--resample if that is the scanner's TR, so that volumes are resampled in time; {headers}",
        )
