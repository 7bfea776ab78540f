"""``python -m export reference``: a copy of a bundle that takes other sessions and grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from export.__main__ import main
from realtime.bundle.bundle import Bundle
from realtime.bundle.locate import demo_data


def image(folder: Path, shift_mm: float = 0.0, *, has_head: bool = True) -> Path:
    """A volume around the demo's region, on a coarser grid."""
    roi: Any = nibabel.load(demo_data("bundle") / "roi.nii.gz")
    affine = roi.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] += np.array([shift_mm - 9, -9, -9])
    voxels = np.random.default_rng(0).uniform(100, 900, (16, 16, 16)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels * has_head, affine), folder / "mean.nii")
    return folder / "mean.nii"


def test_the_copy_has_the_reference_and_all_else(tmp_path: Path) -> None:
    mean, out = image(tmp_path), tmp_path / "out"
    assert main(["reference", str(demo_data("bundle")), "--image", str(mean), "--out", str(out)]) == 0
    before, made = Bundle.open(demo_data("bundle")), Bundle.open(out)
    image_of_mean: Any = nibabel.load(mean)
    assert before.reference is None
    assert made.reference is not None
    np.testing.assert_array_equal(made.reference.voxels, image_of_mean.get_fdata())
    np.testing.assert_allclose(made.reference.affine, image_of_mean.affine)
    assert made.sha256 != before.sha256
    assert made.spec.files.items() > before.spec.files.items()


@pytest.mark.parametrize(
    ("shift_mm", "has_head", "says"),
    [(500.0, True, "0 % of the region"), (0.0, False, "expected a volume of a head")],
)
def test_a_reference_must_show_the_region(
    tmp_path: Path, shift_mm: float, has_head: bool, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mean, out = image(tmp_path, shift_mm, has_head=has_head), tmp_path / "out"
    assert main(["reference", str(demo_data("bundle")), "--image", str(mean), "--out", str(out)]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
