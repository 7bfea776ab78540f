from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nsd import BadFile, BadRequest, GridMismatch, Layout, MissingFile, Run, Trial, read_roi

from .conftest import AFFINE, GRID, HandMade


def run_of(made: HandMade) -> Run:
    return Run(Layout(made.root), 1, 1, 2)


def test_roi_is_what_lies_above_zero(hand_made: HandMade) -> None:
    roi = read_roi(Layout(hand_made.root), 1)
    assert np.array_equal(roi.mask, hand_made.labels > 0)
    assert roi.n_voxels == np.count_nonzero(hand_made.labels > 0)
    assert np.allclose(roi.affine, AFFINE)


def test_volumes_are_those_on_disk_without_the_trailing_one(hand_made: HandMade) -> None:
    run = run_of(hand_made)
    volumes = [run.volume(index) for index in range(run.n_volumes)]
    assert len(volumes) == run.n_volumes == 225
    assert np.array_equal(np.stack(volumes, axis=-1), hand_made.series[..., :225])
    assert run.dtype == volumes[0].dtype == np.int16
    assert run.shape == GRID
    assert run.tr_s == pytest.approx(4 / 3)


def test_any_volume_in_any_order_is_c_contiguous(hand_made: HandMade) -> None:
    run = run_of(hand_made)
    for index in (224, 0, 100, 99, 57):
        volume = run.volume(index)
        assert volume.flags.c_contiguous
        assert np.array_equal(volume, hand_made.series[..., index])


def test_trials_count_images_from_0(hand_made: HandMade) -> None:
    assert run_of(hand_made).trials == [Trial(9, 72_999), Trial(12, 0), Trial(210, 4_241)]


def test_roi_series_has_time_in_rows_and_mask_order_in_columns(hand_made: HandMade) -> None:
    roi = read_roi(Layout(hand_made.root), 1)
    series = run_of(hand_made).roi_series(roi)
    expected = [hand_made.series[x, y, z, :225] for x, y, z in np.argwhere(roi.mask)]
    assert series.dtype == np.float32
    assert np.array_equal(series, np.transpose(expected))


def test_scaled_series_come_in_their_units(hand_made: HandMade) -> None:
    values = np.linspace(-5, 5, hand_made.series.size).reshape(hand_made.series.shape)
    image = nib.Nifti1Image(values, AFFINE)
    image.set_data_dtype(np.int16)
    path = Layout(hand_made.root).timeseries(1, 1, 2)
    nib.save(image, path)
    run = run_of(hand_made)
    assert run.dtype.kind == "f"
    assert np.allclose(run.volume(3), values[..., 3], atol=1e-3)


def test_creating_a_run_reads_no_file(tmp_path: Path) -> None:
    run = Run(Layout(tmp_path), 1, 1, 1)
    with pytest.raises(MissingFile, match=r"session01_run01\.nii\.gz: expected the volumes of subject 1"):
        run.volume(0)
    with pytest.raises(MissingFile, match=r"design_session01_run01.tsv"):
        _ = run.trials


@pytest.mark.parametrize("n_volumes", [225, 227, 1])
def test_another_number_of_volumes_is_refused(hand_made: HandMade, n_volumes: int) -> None:
    path = hand_made.write_series(np.zeros((*GRID, n_volumes), dtype=np.int16))
    with pytest.raises(BadFile) as caught:
        run_of(hand_made).volume(0)
    assert f"{path}: expected four dimensions with 226 volumes" in str(caught.value)


def test_volumes_outside_the_run_are_refused(hand_made: HandMade) -> None:
    for index in (-1, 225):
        with pytest.raises(BadRequest, match=rf"volume {index}: expected 0 to 224"):
            run_of(hand_made).volume(index)


def test_a_truncated_series_is_named(hand_made: HandMade) -> None:
    path = Layout(hand_made.root).timeseries(1, 1, 2)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadFile, match=r"run02.nii.gz: expected volumes 200 to 224|expected volume"):
        run_of(hand_made).roi_series(read_roi(Layout(hand_made.root), 1))


def test_a_series_whose_compression_is_damaged_is_named(hand_made: HandMade) -> None:
    path = Layout(hand_made.root).timeseries(1, 1, 2)
    content = bytearray(path.read_bytes())
    content[30:60] = b"\xff" * 30  # no block of a deflate stream begins like this
    path.write_bytes(content)
    with pytest.raises(BadFile, match=r"run02.nii.gz: expected"):
        run_of(hand_made).roi_series(read_roi(Layout(hand_made.root), 1))


def test_a_series_that_is_not_an_image_is_named(hand_made: HandMade) -> None:
    Layout(hand_made.root).timeseries(1, 1, 2).write_text("no image")
    with pytest.raises(BadFile, match=r"run02.nii.gz: expected a NIfTI series"):
        run_of(hand_made).volume(0)


def test_region_of_another_grid_is_refused_with_both_files(hand_made: HandMade) -> None:
    layout = Layout(hand_made.root)
    roi = read_roi(layout, 1)
    hand_made.write_series(np.zeros((3, 4, 6, 226), dtype=np.int16))
    with pytest.raises(GridMismatch) as caught:
        run_of(hand_made).roi_series(roi)
    assert str(layout.timeseries(1, 1, 2)) in str(caught.value)
    assert str(layout.roi(1)) in str(caught.value)
    assert "(3, 4, 5), found (3, 4, 6)" in str(caught.value)


def test_region_in_another_place_is_refused(hand_made: HandMade) -> None:
    roi = read_roi(Layout(hand_made.root), 1)
    shifted = AFFINE.copy()
    shifted[0, 3] += 1.8
    hand_made.write_series(hand_made.series, shifted)
    with pytest.raises(GridMismatch, match="affine"):
        run_of(hand_made).roi_series(roi)


def test_regions_that_cannot_be_used_are_refused(hand_made: HandMade) -> None:
    layout = Layout(hand_made.root)
    hand_made.write_labels(np.zeros(GRID, dtype=np.int16))
    with pytest.raises(BadFile, match="expected voxels with a label > 0, found none"):
        read_roi(layout, 1)
    hand_made.write_labels(np.ones((*GRID, 2), dtype=np.int16))
    with pytest.raises(BadFile, match=r"expected three dimensions \[x, y, z\], found shape"):
        read_roi(layout, 1)
    with pytest.raises(MissingFile, match="nsdgeneral region of subject 2"):
        read_roi(layout, 2)
