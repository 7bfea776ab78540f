"""The series whose volumes form the run, and those that wait for it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from realtime.sources.files.series import Numbered, Series
from realtime.sources.files.volume_file import VolumeFile
from realtime.sources.files.watch import Found
from realtime.sources.run_boundaries import QUIET_TR, Plan

_log = logging.getLogger(__name__)


class FollowedSeries:
    """The series whose volumes form the run."""

    def __init__(self, series: str, plan: Plan, volumes: Series) -> None:
        self.series = series
        self.n_files = 0
        """Number of files, without those that existed before; a file that is read again counts once."""
        self.is_refused = False
        self.is_over = False
        """Whether it had one volume, such as a reference, and another was acquired after it."""
        self.came: set[int] = set()
        self._heard_s = time.perf_counter()
        self._plan = plan
        self.volumes = volumes
        self._names: set[str] = set()
        """Names of the files counted so far."""
        self._n_of_file: int | None = None
        """How many volumes the file of the run holds, if it is one file."""
        self._grows = False
        """Whether it held fewer before, as its header said."""
        self._is_told = False

    def add(self, found: Found) -> list[Numbered]:
        """Return the volumes that are ready now that a file has come."""
        self._is_told = False
        self._heard_s = time.perf_counter()
        self.n_files += not found.was_there_before and found.name not in self._names
        self._names.add(found.name)
        n_of_file = found.holds.n_of_file if isinstance(found.holds, VolumeFile) else None
        self._grows |= self._n_of_file not in (None, n_of_file)
        self._n_of_file = n_of_file
        return self.volumes.add(found.holds, found.name, found.whole_s, self._heard_s)

    def settle(self) -> list[Numbered]:
        """Return the volumes that need not wait any longer."""
        return self.volumes.settle(time.perf_counter())

    @property
    def is_complete(self) -> bool:
        """Whether all planned volumes came."""
        return len(self.came) == self._plan.n_volumes

    @property
    def has_last(self) -> bool:
        """Whether the last planned volume came, or some of it."""
        last = self._plan.n_volumes - 1
        return last in self.came or self.volumes.lacks_parts_of(last)

    @property
    def is_played(self) -> bool:
        """Whether it is one file of fewer volumes than were planned, and all of them came."""
        return self._n_of_file is not None and not self._grows and len(self.came) >= self._n_of_file

    def tell_what_is_awaited(self) -> None:
        """Tell once why the run ends, or does not, although no volume comes any more."""
        if self._is_told:
            return
        self._is_told = True
        _log.warning(
            "%d of the %d volumes that --volumes plans have come of series %s, and none for %d TR: %s",
            len(self.came),
            self._plan.n_volumes,
            self.series,
            QUIET_TR,
            "its file holds no more, and its run ends"
            if self.is_played
            else "its run stays open until they come, or another series begins",
        )

    def is_quiet(self, now_s: float) -> bool:
        """Whether nothing came for so long that a run may be over."""
        return now_s - self._heard_s > QUIET_TR * self._plan.tr_s


@dataclass(kw_only=True)
class WaitingSeries:
    """A series whose files wait until the followed series is over."""

    began_after: int
    """Number of files of the followed series before this series began."""
    first: int
    """Number of its first file among the files of all waiting series."""
    last: int = 0
    """Number of its last file."""
    names: list[str] = field(default_factory=list)
