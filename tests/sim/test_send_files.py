"""Files that the simulated scanner writes are those that scanners export."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from sim.errors import SimError

from .small_scan import (
    DICOM,
    N_VOLUMES,
    OBLIQUE,
    SHAPE,
    SmallScan,
    deliver,
)


@pytest.mark.parametrize(("name", "ending"), [("nifti", "nii"), ("pair", "img")])
def test_nifti_files_hold_the_volumes(tmp_path: Path, name: str, ending: str) -> None:
    scan = SmallScan()
    deliver(f"folder:{tmp_path}?format={name}", scan)
    for index, voxels in enumerate(scan.voxels):
        image: Any = nib.load(tmp_path / f"task-x_run-03_{index + 1:04d}.{ending}")
        assert np.array_equal(np.asanyarray(image.dataobj), voxels)
        assert np.allclose(image.affine, OBLIQUE, atol=1e-5)


def test_a_whole_run_is_one_4d_file(tmp_path: Path) -> None:
    scan = SmallScan()
    deliver(f"folder:{tmp_path}?format=nifti-4d", scan)
    image: Any = nib.load(tmp_path / "task-x_run-03_bold.nii.gz")
    assert np.array_equal(np.asanyarray(image.dataobj), np.moveaxis(scan.voxels, 0, -1))
    assert image.header.get_zooms()[3] == pytest.approx(1.5)


@pytest.mark.parametrize("name", DICOM)
@pytest.mark.parametrize("signed", [False, True])
def test_dcm2niix_finds_the_volumes_in_dicom_files(tmp_path: Path, name: str, signed: bool) -> None:
    program = pytest.importorskip("dcm2niix").bin
    scan = SmallScan()
    scan.voxels -= np.int16(2_000 * signed)
    deliver(f"folder:{tmp_path / 'dicom'}?format={name}", scan)
    out = tmp_path / "nifti"
    out.mkdir()
    subprocess.run(
        [program, "-f", "%s_%r", "-z", "n", "-o", out, tmp_path / "dicom"], check=True, capture_output=True
    )
    files = sorted(out.glob("*.nii"), key=lambda path: [int(number) for number in path.stem.split("_")])
    images: list[Any] = [nib.as_closest_canonical(nib.load(path)) for path in files]
    voxels = np.concatenate([np.asanyarray(image.dataobj).reshape(*SHAPE, -1) for image in images], axis=-1)
    assert np.array_equal(np.moveaxis(voxels, -1, 0), scan.voxels)
    assert all(np.allclose(image.affine, OBLIQUE, atol=1e-4) for image in images)
    assert images[0].header.get_zooms()[3:] in [(pytest.approx(1.5),), ()]
    assert len(images) == (1 if name in ("mosaic", "classic") else N_VOLUMES)


@pytest.mark.parametrize("name", DICOM)
def test_dicom_files_are_numbered_as_scanners_do(tmp_path: Path, name: str) -> None:
    deliver(f"folder:{tmp_path}?format={name}")
    headers = [pydicom.dcmread(path) for path in sorted(tmp_path.iterdir())]
    n_files = N_VOLUMES * (SHAPE[2] if name in ("classic", "split") else 1)
    assert len({header.SOPInstanceUID for header in headers}) == n_files
    assert len({header.StudyInstanceUID for header in headers}) == 1
    assert Counter(header.AcquisitionNumber for header in headers) == dict.fromkeys(
        range(1, N_VOLUMES + 1), n_files // N_VOLUMES
    )
    if name == "split":
        assert sorted({header.SeriesNumber for header in headers}) == list(range(3_001, 3_001 + N_VOLUMES))
    else:
        assert [header.InstanceNumber for header in headers] == list(range(1, n_files + 1))
        assert {header.SeriesNumber for header in headers} == {3}


def test_runs_of_a_session_are_series_of_one_study(tmp_path: Path) -> None:
    for run_id in ("ses-1_run-01", "ses-1_run-02"):
        deliver(f"folder:{tmp_path}?format=mosaic", SmallScan(run_id=run_id))
    headers = [pydicom.dcmread(path) for path in tmp_path.iterdir()]
    assert len({header.StudyInstanceUID for header in headers}) == 1
    assert len({header.SeriesInstanceUID for header in headers}) == 2


def test_files_that_are_there_are_not_overwritten(tmp_path: Path) -> None:
    address = f"folder:{tmp_path}?format=nifti"
    deliver(address)
    with pytest.raises(SimError, match=r"0001\.nii: expected no file of this run"):
        deliver(address)


@pytest.mark.parametrize("dtype", ["int32", "float64"])
def test_dicom_holds_whole_numbers_of_16_bits_whatever_their_type(tmp_path: Path, dtype: str) -> None:
    scan = SmallScan(dtype)
    deliver(f"folder:{tmp_path}?format=enhanced", scan)
    (first, *_) = sorted(tmp_path.iterdir())
    assert np.array_equal(pydicom.dcmread(first).pixel_array[0], scan.voxels[0][::-1, ::-1, 0].T)


@pytest.mark.parametrize("voxel", [40_000 + 1j, 0.5])
def test_dicom_refuses_voxels_that_it_cannot_hold(tmp_path: Path, voxel: complex) -> None:
    scan = SmallScan("float32")
    scan.voxels[0, 0, 0, 0] = voxel.real
    scan.voxels[0, 1, 0, 0] = -voxel.imag
    with pytest.raises(SimError, match="expected integers of 16 bits, got float32"):
        deliver(f"folder:{tmp_path}?format=classic", scan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "right angles"),
        (np.diag([1, 1, -1, 1]), "right-handed"),
    ],
)
def test_dicom_refuses_grids_that_it_cannot_describe(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(SimError, match=message):
        deliver(f"folder:{tmp_path}?format=classic", SmallScan(affine=OBLIQUE @ np.array(change)))
