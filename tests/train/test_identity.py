"""Identities change with what they are of, and with nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import nibabel
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nsd import Layout, run_trials, runs
from train.errors import TrainError
from train.model.base_model import UNET_FOLDER, latent_size_px, load_unet
from train.recipe import Recipe
from train.store.fingerprints import (
    SYNTHETIC_FILE,
    Terms,
    base_identity,
    file_identity,
    subject_identity,
    vae_identity,
)


def identity_of(root: Path) -> str:
    layout = Layout(root)
    return subject_identity(layout, run_trials(layout, runs(layout, 1)))


def other_region(root: Path) -> None:
    path = Layout(root).roi(1)
    image = nibabel.Nifti1Image.from_filename(path)
    labels = np.asarray(image.dataobj).copy()
    labels.flat[np.flatnonzero(labels > 0)[0]] = 0
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), path)


def other_pictures(root: Path) -> None:
    path = Layout(root).design(1, 1, 2)
    rows = path.read_text().split()
    first = next(row for row, value in enumerate(rows) if value != "0")
    rows[first] = str(1 + int(rows[first]) % 73_000)
    path.write_text("\n".join(rows))


def another_recording(root: Path) -> None:
    layout = Layout(root)
    shutil.copy(layout.timeseries(1, 1, 3), layout.timeseries(1, 1, 2))


def a_run_less(root: Path) -> None:
    Layout(root).timeseries(1, 1, 12).unlink()


def another_seed(root: Path) -> None:
    path = root / SYNTHETIC_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 99}))


@pytest.mark.parametrize(
    "change", [other_region, other_pictures, another_recording, a_run_less, another_seed]
)
def test_a_data_set_that_was_exchanged_is_noticed(
    change: Callable[[Path], None], tiny_nsd: Path, tmp_path: Path
) -> None:
    root = tmp_path / "nsd"
    shutil.copytree(tiny_nsd, root)
    before = identity_of(root)
    assert before == identity_of(tiny_nsd), "a copy is the same data"
    change(root)
    assert identity_of(root) != before


def test_another_subject_in_the_data_set_leaves_a_subject_what_it_was(tiny_nsd: Path, tmp_path: Path) -> None:
    root = tmp_path / "nsd"
    shutil.copytree(tiny_nsd, root)
    note = json.loads((root / SYNTHETIC_FILE).read_text())
    note["signal_share_quartiles"]["2"] = {"mean_over_sessions": [0.1, 0.2, 0.3], "sessions": {}}
    (root / SYNTHETIC_FILE).write_text(json.dumps(note))
    assert identity_of(root) == identity_of(tiny_nsd)
    (root / SYNTHETIC_FILE).write_text("{")
    with pytest.raises(TrainError, match=r"synthetic\.json: expected the file that"):
        identity_of(root)


@pytest.mark.parametrize("part", ["image_unet", "vae"])
def test_another_base_model_is_noticed(part: str, tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    assert base_identity(base) == base_identity(tiny_base), "a copy is the same model"
    path = base / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.weight" if part == "image_unet" else "quant_conv.weight"][:] += 1
    save_file(weights, path, {"format": "pt"})
    assert base_identity(base) != base_identity(tiny_base)
    assert (vae_identity(base) != vae_identity(tiny_base)) == (part == "vae")


def test_size_and_ends_stand_for_a_big_file(tmp_path: Path) -> None:
    path, size = tmp_path / "big", 5 << 20
    found = set()
    for first, last in ((0, 0), (1, 0), (0, 1)):
        content = bytearray(size)
        content[0], content[-1] = first, last
        path.write_bytes(content)
        found.add(file_identity(path))
    path.write_bytes(bytes(size + 1))
    assert len(found | {file_identity(path)}) == 4


def test_the_size_of_latents_needs_no_weights(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / UNET_FOLDER).mkdir()
    shutil.copy(tiny_base / UNET_FOLDER / "config.json", tmp_path / UNET_FOLDER)
    assert latent_size_px(tmp_path) == load_unet(tiny_base).config.sample_size


def test_terms_name_what_differs(tiny_recipe: Recipe) -> None:
    replace = msgspec.structs.replace
    ours = Terms(
        method="dynadiff",
        recipe=tiny_recipe,
        subjects=[1],
        data=["a"],
        sessions=None,
        seed=1,
        base="b",
        parent=None,
    )
    assert ours.differences(msgspec.json.decode(msgspec.json.encode(ours), type=Terms)) == []
    shorter = replace(tiny_recipe, fit=replace(tiny_recipe.fit, steps=1))
    theirs = replace(ours, recipe=shorter, data=["c"], sessions=3, parent="d")
    assert ours.differences(theirs) == ["data", "fit", "parent", "sessions"]
