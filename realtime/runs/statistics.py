"""The statistics of one run as the prior of the next, where the operator asks for it.

Until a run has enough volumes of its own, it is z-scored with the help of a prior. By default that is the
bundle's, which comes from training runs. With ``--statistics carry`` it is the statistics at the end of the
last closed run with the same bundle; ``run.json`` and the page name that run.

    statistics.npz    mean, sd: float32 [V], of a run that closed with enough volumes
    prior.npz         the same form: the statistics that a run began with, where they were carried over

Legend: V voxels of the region.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from realtime.bundle.bundle import Bundle
from realtime.bundle.statistics import VoxelStatistics
from realtime.errors import BundleError, RecordError
from realtime.record.folder import RunFolder
from realtime.record.run_json import RunFile, read_run_file

STATISTICS_FILE = "statistics.npz"
PRIOR_FILE = "prior.npz"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Carried:
    """The statistics of an earlier run, and the name of its folder."""

    run: str
    statistics: VoxelStatistics


def read_statistics(path: Path, n_voxels: int) -> VoxelStatistics:
    """Read a file of this module.

    :raises RecordError: when it is missing or damaged, or of another region
    """
    try:
        return VoxelStatistics.read(path, n_voxels)
    except (BundleError, OSError) as error:
        raise RecordError(f"cannot read the statistics of a run: {error}") from error


def last_run(out: Path, bundle: Bundle) -> Carried | None:
    """The statistics of the last run that was closed with this bundle under ``out``, if there is one."""
    for _, folder in sorted(_closed(out, bundle), key=lambda found: found[0].closed_utc or "", reverse=True):
        try:
            statistics = read_statistics(folder / STATISTICS_FILE, bundle.spec.roi.n_voxels)
        except RecordError as error:
            _log.warning("the statistics of %s are not carried over: %s", folder.name, error)
            continue
        return Carried(run=folder.name, statistics=statistics)
    return None


def prior_of(folder: RunFolder, bundle: Bundle) -> VoxelStatistics:
    """The statistics that a run begins with.

    :raises RecordError: when they were carried over and the copy in the folder is missing or damaged
    """
    if folder.info.prior_from is None:
        return bundle.prior
    return read_statistics(folder.path / PRIOR_FILE, bundle.spec.roi.n_voxels)


def _closed(out: Path, bundle: Bundle) -> list[tuple[RunFile, Path]]:
    found = []
    for file in out.glob(f"*/{STATISTICS_FILE}"):
        try:
            info = read_run_file(file.parent)
        except RecordError as error:
            _log.warning("ignored a run folder: %s", error)
            continue
        if info.state == "closed" and info.bundle_sha256 == bundle.sha256 and info.replay_of is None:
            found.append((info, file.parent))
    return found
