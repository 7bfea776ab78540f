from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.bundle.build import export_bundle
from export.errors import ExportError
from export.lineage.source import read_info_of
from export.resources import check_disk, check_memory, count_weights, is_out_of_memory
from train.model.base_model import make_unet, make_vae
from train.model.brain import BrainModule
from train.model.dynadiff import brain_config

from .conftest import N_VOXELS


def test_weights_are_counted_without_loading_them(tiny_checkpoint: Path) -> None:
    info = read_info_of(tiny_checkpoint)
    parts = [
        make_unet(info.recipe.base),
        make_vae(info.recipe.base),
        BrainModule(brain_config(info.recipe, N_VOXELS)),
    ]
    exact = sum(weight.numel() for part in parts for weight in part.parameters())
    assert count_weights(tiny_checkpoint, info) == pytest.approx(exact, abs=1000)


def test_a_disk_that_is_too_small_is_told_with_need_and_free(tmp_path: Path) -> None:
    out = tmp_path / "not yet" / "there" / "bundle"
    check_disk(10**3, "fp16", out)
    with pytest.raises(ExportError, match=rf"expected 6300000\.0 GB of free disk at {tmp_path}, found"):
        check_disk(10**15, "fp16", out)
    with pytest.raises(ExportError, match=r"expected 4200000\.0 GB"):
        check_disk(10**15, "fp32", out)
    assert list(tmp_path.iterdir()) == []


def test_memory_that_is_too_small_is_told_before_anything_is_read() -> None:
    check_memory(0)
    with pytest.raises(ExportError, match=r"expected about 10000001\.0 GB of free memory, found "):
        check_memory(10**15)


def test_errors_of_memory_are_known_from_others() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**55)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**55)
    assert is_out_of_memory(of_torch.value)
    assert is_out_of_memory(of_numpy.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(other.value)


def test_memory_that_runs_out_is_told_as_such(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many(*_: object) -> None:
        torch.empty(2**55)

    monkeypatch.setattr("export.bundle.build.note_sources", too_many)
    with pytest.raises(ExportError, match=r"^out of memory \(.*nothing was written"):
        export_bundle(tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
