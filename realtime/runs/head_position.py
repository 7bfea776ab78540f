"""Finds the region in volumes that do not lie on the decoder's grid, because the head lies elsewhere.

    decoder's reference ─ session, once ─► the run's first volume ─ motion, every volume ─► this volume

The two rigid transforms are joined, and the volume is interpolated once, at the region's voxels.

Legend: V voxels of the region.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime import events
from realtime.bundle.bundle import Bundle, Reference
from realtime.bundle.spec import Roi
from realtime.errors import PreprocessError, RegistrationError
from realtime.preprocessing.stream import CENSOR_SHARE
from realtime.record.run_json import Registration
from realtime.registration.displacement import framewise_displacement, rms_displacement
from realtime.registration.motion import MotionTracker
from realtime.registration.resample import RegionSampler
from realtime.registration.rigid import RigidParameters
from realtime.registration.session import SessionRegistration, register_session

Affine = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The region in one volume."""

    row: NDArray[np.floating[Any]]
    """[V]; NaN outside the field of view."""
    motion: events.Motion | None = None
    censored: str = ""
    """Why the volume is not to be used; empty if it is."""
    said: str = ""
    """What the operator is told."""


def positions_of(roi: Roi, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Where the region's voxels lie, [V, 3] in mm, in C order."""
    affine = np.array(roi.affine)
    positions: NDArray[np.float64] = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    return positions


class Head:
    """Registers the volumes of one run, in order.

    :param settings: where registration begins, and when motion censors a volume
    :param shape: of the run's volumes, [x, y, z]
    """

    def __init__(self, bundle: Bundle, settings: Registration, shape: tuple[int, int, int]) -> None:
        if bundle.reference is None:
            raise PreprocessError(
                "expected a bundle with a reference volume, because the run is registered; "
                f"{bundle.spec.name} has none: python -m export reference adds one"
            )
        self._reference: Reference = bundle.reference
        self._settings = settings
        self._region = RegionSampler(positions_of(bundle.spec.roi, bundle.roi_mask))
        self._nowhere = np.full(bundle.spec.roi.n_voxels, np.nan)
        self._first = np.full(shape, np.nan, dtype=np.float32)
        """The run's first volume that was registered to the decoder's reference; NaN before."""
        self._first_affine = self._to_first = np.full((4, 4), np.nan)
        """Of that volume; and from the decoder's mm to its mm."""
        self._tracker: MotionTracker | None = None
        self._last: tuple[int, NDArray[np.float64]] | None = None
        """The newest volume that was registered, and the head's motion in it."""
        self._n_failed = 0
        self.alarm = ""
        """Why no volume could be registered so far; empty once one was."""

    @property
    def is_searching(self) -> bool:
        """Whether no volume was registered to the decoder's reference so far."""
        return self._tracker is None

    def place(self, index: int, volume: NDArray[Any], affine: Affine) -> Placed:
        """Find the region in a volume [x, y, z]; indices rise."""
        voxels = volume.astype(np.float32)
        try:
            if self._tracker is None:
                return self._begin(index, voxels, affine)
            return self._follow(self._tracker, index, voxels, affine)
        except RegistrationError as error:
            if self.is_searching:
                self.alarm = f"the head is not found, and nothing is decoded: {error}"
            return Placed(row=self._nowhere, censored=f"not registered: {error}")

    def _begin(self, index: int, volume: NDArray[np.float32], affine: Affine) -> Placed:
        """Register the first volume to the decoder's reference; that takes seconds."""
        if self._n_failed & (self._n_failed - 1):  # a later one may be better, but not every one is tried
            self._n_failed += 1
            return Placed(row=self._nowhere, censored="no volume of the run could be registered so far")
        self._n_failed += 1
        initial = None if self._settings.initial is None else np.array(self._settings.initial)
        reference = self._reference
        session = register_session(volume, affine, reference.voxels, reference.affine, initial)
        tracker = MotionTracker(volume, affine)
        self._first, self._first_affine, self._to_first = volume, affine, session.matrix
        self._tracker, self.alarm = tracker, ""
        self._last = index, np.eye(4)
        still = _as_event(RigidParameters(), None, None)
        row = self._region.sample(volume, affine, session.matrix)
        return Placed(row=row, motion=still, censored=_outside(row), said=_in_words(index, session))

    def _follow(
        self, tracker: MotionTracker, index: int, volume: NDArray[np.float32], affine: Affine
    ) -> Placed:
        motion = tracker.estimate(volume, affine)  # from anew, so that it depends on this volume alone
        fd_mm = rmsd_mm = None
        if self._last is not None and self._last[0] == index - 1:
            before = self._last[1]
            fd_mm = framewise_displacement(RigidParameters.of(before, tracker.centre_mm), motion.parameters)
            rmsd_mm = rms_displacement(before, motion.matrix, tracker.centre_mm)
        self._last = index, motion.matrix
        row = self._region.sample(volume, affine, motion.matrix @ self._to_first)
        moved = _as_event(motion.parameters, fd_mm, rmsd_mm)
        return Placed(row=row, motion=moved, censored=self._jerk(fd_mm) or _outside(row))

    def _jerk(self, fd_mm: float | None) -> str:
        limit_mm = self._settings.max_fd_mm
        if fd_mm is None or limit_mm is None or fd_mm <= limit_mm:
            return ""
        return f"the head moved by {fd_mm:.2f} mm (framewise displacement), the limit is {limit_mm:g} mm"

    def state(self) -> dict[str, NDArray[Any]]:
        """All that later volumes depend on, by name; NaN where there is nothing yet."""
        index, matrix = self._last or (-1, np.full((4, 4), np.nan))
        return {
            "head_first": self._first,
            "head_places": np.stack([self._first_affine, self._to_first, matrix]),
            "head_counts": np.array([index, self._n_failed], dtype=np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from the state of another run's head that was made with the same arguments, bit for bit.

        :raises RegistrationError: when there is no head in its first volume
        """
        index, self._n_failed = (int(number) for number in state["head_counts"])
        first_affine, to_first, matrix = state["head_places"]
        if not np.isfinite(to_first).all():
            return
        self._tracker = MotionTracker(state["head_first"], first_affine)
        self._first, self._first_affine, self._to_first = state["head_first"], first_affine, to_first
        self._last = index, matrix


class MovedSlices:
    """Finds the region where a scanner moves its slices within a run that is not registered.

    The scanner follows the head (prospective motion correction), and says where each volume's slices lie.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._region = RegionSampler(positions_of(bundle.spec.roi, bundle.roi_mask))
        self._nowhere = np.full(bundle.spec.roi.n_voxels, np.nan)
        self._has_said = False

    def place(self, index: int, volume: NDArray[Any], affine: Affine) -> Placed:
        """Find the region in a volume [x, y, z]."""
        said = (
            f"the scanner has moved its slices at volume {index}; the region is interpolated where they lie"
        )
        if self._has_said:
            said = ""
        self._has_said = True
        try:
            row = self._region.sample(volume.astype(np.float32), affine, np.eye(4))
        except RegistrationError as error:
            return Placed(row=self._nowhere, censored=str(error))
        return Placed(row=row, censored=_outside(row), said=said)


def _outside(row: NDArray[np.floating[Any]]) -> str:
    """Why a volume is not to be used that does not show all of the region; empty if it does."""
    inside = float(np.isfinite(row).mean())
    if inside >= 1 - CENSOR_SHARE:
        return ""
    return f"only {100 * inside:.0f} % of the region lie in the field of view; move it over the region"


def _as_event(parameters: RigidParameters, fd_mm: float | None, rmsd_mm: float | None) -> events.Motion:
    return events.Motion(**parameters._asdict(), framewise_displacement=fd_mm, rmsd=rmsd_mm)


def _in_words(index: int, session: SessionRegistration) -> str:
    parameters = RigidParameters.of(session.matrix)
    turned = math.degrees(math.hypot(*parameters[3:]))
    return (
        f"volume {index} is registered to the decoder's reference: similarity {session.similarity:.2f}, the "
        f"head has turned by {turned:.1f}°; the volumes after it are registered to it"
    )
