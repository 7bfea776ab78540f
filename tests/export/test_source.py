from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from export.__main__ import main
from export.errors import ExportError
from export.lineage.scores import read_scores
from export.lineage.source import read_checkpoint, read_subject, write_subject

from .conftest import AFFINE, GRID, N_VOXELS


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, with its base model beside it as before, to be damaged."""
    shutil.copytree(tiny_checkpoint.parent / "base", tmp_path / "base")
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def test_region_prior_and_null_condition_come_through(copied: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(copied)
    subject = read_subject(checkpoint)
    (tmp_path / "out").mkdir()
    write_subject(checkpoint, subject, tmp_path / "out")
    assert (subject.roi.n_voxels, subject.roi.shape) == (N_VOXELS, GRID)
    np.testing.assert_allclose(subject.roi.affine, AFFINE, rtol=1e-7)  # a NIfTI header holds float32
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "null_condition.npy"), checkpoint.null_NW)
    with np.load(tmp_path / "out" / "prior.npz") as prior:
        assert {name: set(prior[name].tolist()) for name in prior} == {"mean": {900.0}, "sd": {20.0}}


def test_a_moved_base_model_is_named(copied: Path, tmp_path: Path) -> None:
    moved = (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(
        ExportError,
        match=r"expected a base model in .*base, found no such folder; give the path of one with --base",
    ):
        read_checkpoint(copied)
    assert read_checkpoint(copied, moved).base_folder == moved


@pytest.mark.parametrize(
    "missing",
    [
        "checkpoint.json",
        "brain.safetensors",
        "adapter/pytorch_lora_weights.safetensors",
        "sub-01/roi.nii.gz",
        "sub-01/prior.npz",
    ],
)
def test_a_missing_file_is_named(copied: Path, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / missing).unlink()
    out = copied.parent / "out"
    assert main(["bundle", "--checkpoint", str(copied), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("export: ")
    assert said.count("\n") == 1
    assert Path(missing).name in said
    assert not out.exists()


def test_no_checkpoint_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "--checkpoint", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "checkpoint.json, found no file" in capsys.readouterr().err


def test_no_evaluation_where_one_is_named(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bundle", "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "out")]
    assert main([*command, "--evaluation", str(tmp_path / "table.md")]) == 2
    assert "expected the table.md of `python -m train evaluate`" in capsys.readouterr().err


def test_an_evaluation_of_averages_or_without_figures_tells_nothing_of_live_frames(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_scores(None, 1) == read_scores(tmp_path / "table.md", 1) == ()
    assert "the runtime will not tell how well the bundle decodes" in caplog.text
    score = {"value": 0.9, "standard_error": 0.01, "low": 0.8, "high": 1.0, "n_trials": 9}
    earlier = {"average": False, "rows": {"streaming": {"HOG": score}}}
    plain = {"blur_faces": "none", "upsample_truth": False}
    table = earlier | {"subject": 1, "sampler": "ddim", "scoring": plain}
    for of_live in (earlier, table):
        (tmp_path / "table.json").write_text(json.dumps(of_live))
        (told,) = read_scores(tmp_path / "table.md", 1)
        assert (told.metric, told.decoded_from, told.value) == ("HOG", "streaming", 0.9)
    for change, reason in (
        ({"average": True}, "of averaged presentations"),
        ({"sampler": "ddpm"}, "of decodes by DDPM"),
        ({"scoring": plain | {"blur_faces": "decoded"}}, "blurred faces"),
        ({"scoring": plain | {"upsample_truth": True}}, "enlarged truth"),
    ):
        caplog.clear()
        (tmp_path / "table.json").write_text(json.dumps(table | change))
        assert read_scores(tmp_path / "table.md", 1) == ()
        assert reason in caplog.text
    (tmp_path / "table.json").write_text("{}")
    with pytest.raises(ExportError, match="expected what `python -m train evaluate` wrote"):
        read_scores(tmp_path / "table.md", 1)


def test_an_evaluation_of_another_subject_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.md").write_text("| offline | 0.987 |")
    (tmp_path / "table.json").write_text(json.dumps({"average": False, "rows": {}, "subject": 2}))
    command = ["bundle", "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "out")]
    assert main([*command, "--evaluation", str(tmp_path / "table.md")]) == 2
    assert "expected an evaluation of subject 1, found one of subject 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_weights(copied: Path) -> None:
    whole = (copied / "brain.safetensors").read_bytes()
    (copied / "brain.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match="expected weights that fit each other"):
        read_checkpoint(copied)


def test_weights_of_another_size(copied: Path) -> None:
    weights = load_file(copied / "brain.safetensors")
    weights["brain.output.weight"] = weights["brain.output.weight"][:-1].contiguous()
    save_file(weights, copied / "brain.safetensors")
    with pytest.raises(ExportError, match=r"size mismatch for output\.weight"):
        read_checkpoint(copied)


def test_a_region_that_the_brain_module_was_not_trained_on(copied: Path) -> None:
    mask = np.zeros(GRID, dtype=np.int16)
    mask.flat[: N_VOXELS - 1] = 1
    nibabel.save(nibabel.Nifti1Image(mask, AFFINE), copied / "sub-01" / "roi.nii.gz")
    with pytest.raises(ExportError, match="expected the 30 voxels the brain module was trained on, found 29"):
        read_subject(read_checkpoint(copied))


def test_a_prior_of_another_region(copied: Path) -> None:
    np.savez(copied / "sub-01" / "prior.npz", mean=np.ones(3, np.float32), sd=np.ones(3, np.float32))
    with pytest.raises(ExportError, match=r"prior\.npz.*expected C-order float32 \(30,\)"):
        read_subject(read_checkpoint(copied))
