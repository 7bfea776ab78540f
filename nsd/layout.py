"""Paths of the files of the Natural Scenes Dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SYNTHETIC_FILE = "synthetic.json"
"""Written into the root of a synthetic data set; NSD itself has no such file."""

_SPACE = "func1pt8mm"


@dataclass(frozen=True)
class Layout:
    """Paths of a data set in NSD's layout; opens no file, and the files need not exist.

    Subjects, sessions and runs are numbered from 1, as in NSD's file names.
    """

    root: Path

    @property
    def is_synthetic(self) -> bool:
        """Whether a simulator wrote this data set."""
        return (self.root / SYNTHETIC_FILE).is_file()

    def _timeseries_dir(self, subject: int) -> Path:
        return self.root / "nsddata_timeseries" / "ppdata" / f"subj{subject:02d}" / _SPACE

    def timeseries(self, subject: int, session: int, run: int) -> Path:
        """Preprocessed volumes of one run, ``[x, y, z, time]``."""
        name = f"timeseries_session{session:02d}_run{run:02d}.nii.gz"
        return self._timeseries_dir(subject) / "timeseries" / name

    def design(self, subject: int, session: int, run: int) -> Path:
        """One integer per row: the image that appears at this volume, or 0."""
        return self._timeseries_dir(subject) / "design" / f"design_session{session:02d}_run{run:02d}.tsv"

    def motion(self, subject: int, session: int, run: int) -> Path:
        """Three translations (mm) and three rotations (rad) per row."""
        return self._timeseries_dir(subject) / "motion" / f"motion_session{session:02d}_run{run:02d}.tsv"

    def roi(self, subject: int) -> Path:
        """The nsdgeneral ROI: > 0 inside, 0 other cortex, -1 outside cortex."""
        return self.root / "nsddata" / "ppdata" / f"subj{subject:02d}" / _SPACE / "roi" / "nsdgeneral.nii.gz"

    def mean(self, subject: int) -> Path:
        """The mean functional volume, ``[x, y, z]``, in the coordinates of the series."""
        return self.root / "nsddata" / "ppdata" / f"subj{subject:02d}" / _SPACE / "mean.nii.gz"

    def raw(self, subject: int, session: int, run: int, ending: str) -> Path:
        """A file of the raw side of a run, in BIDS, such as ``ending`` ``bold.json``."""
        place = f"sub-{subject:02d}_ses-nsd{session:02d}"
        folder = self.root / "nsddata_rawdata" / f"sub-{subject:02d}" / f"ses-nsd{session:02d}" / "func"
        return folder / f"{place}_task-nsdcore_run-{run:02d}_{ending}"

    def expdesign(self) -> Path:
        """Orderings and image lists of the whole experiment (MATLAB, 1-based)."""
        return self.root / "nsddata" / "experiments" / "nsd" / "nsd_expdesign.mat"

    def stim_info(self) -> Path:
        """One row for each of the 73 000 images (0-based ``nsdId``)."""
        return self.root / "nsddata" / "experiments" / "nsd" / "nsd_stim_info_merged.csv"

    def stimuli(self) -> Path:
        """The pictures, HDF5 data set ``imgBrick``."""
        return self.root / "nsddata_stimuli" / "stimuli" / "nsd" / "nsd_stimuli.hdf5"

    def betas(self, subject: int, session: int, ending: str = "nii.gz") -> Path:
        """Single-trial GLM responses of one session (the GLMdenoise + ridge version).

        :param ending: ``nii.gz``, or ``hdf5`` for the same values in a file for random access
        """
        folder = self.root / "nsddata_betas" / "ppdata" / f"subj{subject:02d}" / _SPACE
        return folder / "betas_fithrf_GLMdenoise_RR" / f"betas_session{session:02d}.{ending}"
