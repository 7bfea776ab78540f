"""What runs leave to later ones, where the operator asks for it: mean and SD of every voxel of the region.

Until a run has enough volumes of its own it is z-scored with the help of a prior. By default that is the
bundle's, from training runs: every run begins anew. With ``--statistics carry`` it is what the last closed
run with the same bundle came to; which run that was stands in ``run.json`` and on the page.

    statistics.npz    mean, sd: float32 [V], of a run that closed with enough volumes
    prior.npz         the same form: what a run began with, where that was carried over

Legend: V voxels of the region.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from realtime.bundle import files
from realtime.bundle.bundle import Bundle
from realtime.errors import BundleError, RecordError
from realtime.record.folder import RunFolder
from realtime.record.run_json import RunFile, read_run_file

STATISTICS_FILE = "statistics.npz"
PRIOR_FILE = "prior.npz"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of every voxel of the region, float32 [V]."""

    mean: NDArray[np.float32]
    sd: NDArray[np.float32]
    """Over time, after detrending."""

    def as_npz(self) -> bytes:
        """As the content of a file."""
        file = io.BytesIO()
        np.savez(file, mean=self.mean.astype("<f4"), sd=self.sd.astype("<f4"))
        return file.getvalue()


@dataclass(frozen=True, kw_only=True)
class Carried:
    """Statistics and the run that they are of."""

    run: str
    statistics: Statistics


def read_statistics(path: Path, n_voxels: int) -> Statistics:
    """Read a file of this module.

    :raises RecordError: when it is missing or damaged, or of another region
    """
    try:
        return Statistics(**files.read_npz(path, {"mean": (n_voxels,), "sd": (n_voxels,)}))
    except (BundleError, OSError) as error:
        raise RecordError(f"cannot read the statistics of a run: {error}") from error


def last_run(out: Path, bundle: Bundle) -> Carried | None:
    """The statistics of the last run that was closed with this bundle under ``out``, if there is one."""
    for _, folder in sorted(_closed(out, bundle), key=lambda found: found[0].closed_utc or "", reverse=True):
        try:
            statistics = read_statistics(folder / STATISTICS_FILE, bundle.spec.roi.n_voxels)
        except RecordError as error:
            _log.warning("%s has no statistics to carry over: %s", folder.name, error)
            continue
        return Carried(run=folder.name, statistics=statistics)
    return None


def prior_of(folder: RunFolder, bundle: Bundle) -> Statistics:
    """What a run begins with.

    :raises RecordError: when it was carried over and its copy is missing or damaged
    """
    if folder.info.prior_from is None:
        return Statistics(mean=bundle.prior_mean, sd=bundle.prior_sd)
    return read_statistics(folder.path / PRIOR_FILE, bundle.spec.roi.n_voxels)


def in_words(info: RunFile) -> str:
    """Where a run's statistics begin, for people."""
    return "the bundle's prior" if info.prior_from is None else f"what {info.prior_from} came to"


def _closed(out: Path, bundle: Bundle) -> list[tuple[RunFile, Path]]:
    found = []
    for file in out.glob(f"*/{STATISTICS_FILE}"):
        try:
            info = read_run_file(file.parent)
        except RecordError as error:
            _log.warning("passed over: %s", error)
            continue
        if info.state == "closed" and info.bundle_sha256 == bundle.sha256 and info.replay_of is None:
            found.append((info, file.parent))
    return found
