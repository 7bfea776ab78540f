from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from nsd import BadFile, BadRequest, Layout, MissingFile, Stimuli


def write(tmp_path: Path, name: str, values: np.ndarray) -> Layout:
    layout = Layout(tmp_path)
    layout.stimuli().parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(layout.stimuli(), "w") as file:
        file[name] = values
    return layout


def test_pictures_come_in_the_order_asked_for(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3)).astype(np.uint8)
    with Stimuli(write(tmp_path, "imgBrick", pictures)) as stimuli:
        assert len(stimuli) == 7
        assert stimuli.size_px == (4, 5)
        assert np.array_equal(stimuli.image(6), pictures[6])
        assert np.array_equal(stimuli.images([5, 0, 5, 2]), pictures[[5, 0, 5, 2]])
        for image in (-1, 7):
            with pytest.raises(BadRequest, match=rf"image {image}: expected 0 to 6"):
                stimuli.image(image)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("other", np.zeros((2, 4, 4, 3), np.uint8)),
        ("imgBrick", np.zeros((2, 4, 4), np.uint8)),
        ("imgBrick", np.zeros((2, 4, 4, 4), np.uint8)),
        ("imgBrick", np.zeros((2, 4, 4, 3), np.float32)),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, name: str, values: np.ndarray) -> None:
    with pytest.raises(BadFile, match=r"nsd_stimuli.hdf5: expected uint8 data set 'imgBrick'"):
        Stimuli(write(tmp_path, name, values))


def test_nsds_own_file_has_all_pictures_and_another_those_that_it_says(tmp_path: Path) -> None:
    layout = write(tmp_path, "imgBrick", np.zeros((7, 4, 5, 3), np.uint8))
    with Stimuli(layout) as stimuli:
        assert stimuli.drawn.tolist() == list(range(7))
    with h5py.File(layout.stimuli(), "r+") as file:
        file["drawn"] = np.isin(np.arange(7), (2, 5))
    with Stimuli(layout) as stimuli:
        assert stimuli.drawn.tolist() == [2, 5]
        assert stimuli.images([5, 2]).shape == (2, 4, 5, 3)
        with pytest.raises(BadRequest, match=r"image 3: expected one of the 2 that .* has; `python -m sim"):
            stimuli.images([5, 3])
    with h5py.File(layout.stimuli(), "r+") as file:
        del file["drawn"]
        file["drawn"] = np.ones(3, np.bool_)
    with pytest.raises(BadFile, match=r"expected 'drawn' of shape \(7,\)"):
        Stimuli(layout)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with pytest.raises(MissingFile, match="expected the stimulus pictures"):
        Stimuli(layout)
    layout.stimuli().parent.mkdir(parents=True)
    layout.stimuli().write_text("no pictures")
    with pytest.raises(BadFile, match="expected an HDF5 file"):
        Stimuli(layout)
