from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from nsd import BadFile, BadRequest, GridMismatch, Layout, MissingFile, Roi, betas_path, read_betas, read_roi

from .conftest import AFFINE, GRID, HandMade, save

BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session03.nii.gz"


@pytest.fixture
def values(hand_made: HandMade) -> npt.NDArray[np.int16]:
    """Session 3 of the data set made by hand: ``[x, y, z, 750]``."""
    values = np.random.default_rng(1).integers(-32_768, 32_768, (*GRID, 750)).astype(np.int16)
    save(values, hand_made.root / BETAS, AFFINE)
    return values


def read(made: HandMade) -> npt.NDArray[np.float32]:
    layout = Layout(made.root)
    return read_betas(layout, 1, 3, read_roi(layout, 1))


def rewrite(made: HandMade, values: npt.NDArray[Any], affine: npt.NDArray[np.float64] = AFFINE) -> None:
    save(values, made.root / BETAS, affine)


def test_rows_are_trials_and_values_percent_signal_change(
    hand_made: HandMade, values: npt.NDArray[np.int16]
) -> None:
    betas = read(hand_made)
    expected = [values[x, y, z] / 300 for x, y, z in np.argwhere(hand_made.labels > 0)]
    assert betas.dtype == np.float32
    assert betas.shape == (750, np.count_nonzero(hand_made.labels > 0))
    np.testing.assert_allclose(betas, np.transpose(expected), rtol=1e-6)


def test_a_session_is_read_in_blocks(tmp_path: Path) -> None:
    grid = (30, 30, 30)
    layout = Layout(tmp_path)
    save(np.zeros((*grid, 750), dtype=np.int16), layout.betas(1, 1), AFFINE)  # 40 MB
    mask = np.zeros(grid, dtype=np.bool_)
    mask[3, 4, 5] = True
    tracemalloc.start()
    try:
        read_betas(layout, 1, 1, Roi(mask=mask, affine=AFFINE))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6e6  # a block of 25 of the 750 trials is 1.35 MB


def test_missing_files_and_sessions_are_named(hand_made: HandMade) -> None:
    with pytest.raises(
        MissingFile, match=r"betas_session03\.nii\.gz: expected the single-trial responses of"
    ):
        read(hand_made)
    roi = read_roi(Layout(hand_made.root), 1)
    with pytest.raises(BadRequest, match="session 41: expected 1 to 40"):
        read_betas(Layout(hand_made.root), 1, 41, roi)


@pytest.mark.parametrize("shape", [(*GRID, 749), (*GRID, 751), GRID])
def test_another_number_of_trials_is_refused(hand_made: HandMade, shape: tuple[int, ...]) -> None:
    rewrite(hand_made, np.zeros(shape, dtype=np.int16))
    with pytest.raises(BadFile, match="expected four dimensions with 750 volumes, one for each trial, found"):
        read(hand_made)


def test_another_unit_is_refused(hand_made: HandMade, values: npt.NDArray[np.int16]) -> None:
    rewrite(hand_made, values.astype(np.float32))
    with pytest.raises(
        BadFile, match="expected int16, 300 times percent signal change, unscaled, found float32"
    ):
        read(hand_made)
    scaled = nib.Nifti1Image(values / 300.0, AFFINE)
    scaled.set_data_dtype(np.int16)
    nib.save(scaled, hand_made.root / BETAS)
    with pytest.raises(BadFile, match="unscaled, found float64"):
        read(hand_made)


def test_big_endian_files_give_the_same_numbers(hand_made: HandMade, values: npt.NDArray[np.int16]) -> None:
    expected = read(hand_made)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    swapped = nib.Nifti1Image(values, AFFINE, header)
    nib.save(swapped, hand_made.root / BETAS)
    assert nib.Nifti1Image.from_filename(hand_made.root / BETAS).header.endianness == ">"
    assert np.array_equal(read(hand_made), expected)


def test_another_grid_is_refused_and_both_files_named(hand_made: HandMade) -> None:
    rewrite(hand_made, np.zeros((3, 4, 6, 750), dtype=np.int16))
    with pytest.raises(GridMismatch, match=r"betas_session03.*nsdgeneral.*\(3, 4, 5\), found \(3, 4, 6\)"):
        read(hand_made)
    shifted = AFFINE.copy()
    shifted[0, 3] += 1.8
    rewrite(hand_made, np.zeros((*GRID, 750), dtype=np.int16), shifted)
    with pytest.raises(GridMismatch, match="betas_session03.*affine"):
        read(hand_made)


def test_a_damaged_or_foreign_file_is_named(hand_made: HandMade, values: npt.NDArray[np.int16]) -> None:
    path = hand_made.root / BETAS
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadFile, match=r"betas_session03.nii.gz: expected trials 3\d\d to \d+ to be readable"):
        read(hand_made)
    path.write_bytes(content[:30] + b"\xff" * 30 + content[60:])
    with pytest.raises(BadFile, match=r"betas_session03.nii.gz: expected"):
        read(hand_made)
    path.write_text("no image")
    with pytest.raises(BadFile, match="expected a NIfTI series"):
        read(hand_made)


HDF5 = BETAS.replace(".nii.gz", ".hdf5")


def write_hdf5(made: HandMade, values: npt.NDArray[Any], name: str = "betas") -> Path:
    """As NSD's: x first for MATLAB, so axes are reversed here; a chunk holds all trials of a voxel."""
    path = made.root / HDF5
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=values.transpose(3, 2, 1, 0), chunks=(values.shape[3], 1, 1, 1))
    return path


def test_both_files_of_a_session_give_the_same_numbers(
    hand_made: HandMade, values: npt.NDArray[np.int16]
) -> None:
    from_nifti = read(hand_made)
    path = write_hdf5(hand_made, values)
    (hand_made.root / BETAS).unlink()
    layout = Layout(hand_made.root)
    assert betas_path(layout, 1, 3) == path
    np.testing.assert_array_equal(read(hand_made), from_nifti)


def test_of_two_files_the_one_with_coordinates_is_read(
    hand_made: HandMade, values: npt.NDArray[np.int16]
) -> None:
    expected = read(hand_made)
    write_hdf5(hand_made, np.zeros_like(values))
    np.testing.assert_array_equal(read(hand_made), expected)


def test_an_hdf5_file_is_read_by_slices(tmp_path: Path) -> None:
    layout, grid = Layout(tmp_path), (30, 30, 30)
    path = layout.betas(1, 1, "hdf5")
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", (750, *grid), np.int16, chunks=(750, 1, 1, 1))  # 40 MB
    mask = np.ones(grid, dtype=np.bool_)
    mask[:, :, 1:-1] = False
    tracemalloc.start()
    try:
        betas = read_betas(layout, 1, 1, Roi(mask=mask, affine=AFFINE))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < betas.nbytes + 10e6  # a slice is 1.35 MB


def test_an_hdf5_file_of_something_else_is_named(hand_made: HandMade, values: npt.NDArray[np.int16]) -> None:
    refusals: list[tuple[npt.NDArray[Any], str]] = [
        (
            values[..., :749],
            r"expected four dimensions \[750 trials, z, y, x\], found shape \(749,",
        ),
        (values.astype(np.float32), "expected int16, 300 times percent signal change, unscaled"),
    ]
    (hand_made.root / BETAS).unlink()
    for other, said in refusals:
        write_hdf5(hand_made, other)
        with pytest.raises(BadFile, match=r"betas_session03\.hdf5: " + said):
            read(hand_made)
    write_hdf5(hand_made, values.transpose(2, 1, 0, 3))  # axes as they lie in the file
    with pytest.raises(GridMismatch, match=r"nsdgeneral.*\(3, 4, 5\), found \(5, 4, 3\)"):
        read(hand_made)
    write_hdf5(hand_made, values, name="other")
    with pytest.raises(BadFile, match="expected an HDF5 file with a data set 'betas'"):
        read(hand_made)
    (hand_made.root / HDF5).write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    with pytest.raises(BadFile, match="expected an HDF5 file"):
        read(hand_made)
