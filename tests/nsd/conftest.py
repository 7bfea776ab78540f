"""A data set in NSD's layout, written here by hand so that reading is tested without our own writer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

GRID = (3, 4, 5)
AFFINE = np.array([[-1.8, 0, 0, 70.0], [0, 1.8, 0, -80.0], [0, 0, 1.8, -50.0], [0, 0, 0, 1]])
SERIES = "nsddata_timeseries/ppdata/subj01/func1pt8mm"


@dataclass(frozen=True)
class HandMade:
    root: Path
    series: npt.NDArray[np.int16]  # [x, y, z, 226]
    labels: npt.NDArray[np.int16]  # [x, y, z]

    def write_series(self, values: npt.NDArray[Any], affine: npt.NDArray[np.float64] = AFFINE) -> Path:
        path = self.root / SERIES / "timeseries" / "timeseries_session01_run02.nii.gz"
        save(values, path, affine)
        return path

    def write_labels(self, values: npt.NDArray[Any]) -> Path:
        path = self.root / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz"
        save(values, path, AFFINE)
        return path

    def write_design(self, text: str) -> Path:
        path = self.root / SERIES / "design" / "design_session01_run02.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


def save(values: npt.NDArray[Any], path: Path, affine: npt.NDArray[np.float64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)


@pytest.fixture
def hand_made(tmp_path: Path) -> HandMade:
    rng = np.random.default_rng(0)
    series = rng.integers(0, 3000, (*GRID, 226)).astype(np.int16)
    labels = rng.integers(-1, 8, GRID).astype(np.int16)
    made = HandMade(tmp_path / "nsd", series, labels)
    made.write_series(series)
    made.write_labels(labels)
    rows = ["0"] * 225
    rows[9], rows[12], rows[210] = "73000", "1", "4242"
    made.write_design("\n".join(rows) + "\n")
    return made
