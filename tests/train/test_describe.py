"""Counts of the paper's model, without its weights."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

from train.__main__ import main
from train.errors import TrainError
from train.fitting.fit import untrained_model
from train.model.describe import Part, describe, region_sizes
from train.recipe import PAPER, Recipe, read_recipe

from .test_processes import as_toml


@pytest.fixture(scope="module")
def parts() -> dict[str, Part]:
    return {part.name: part for part in describe(read_recipe(PAPER), [15_724])}


def test_the_unet_is_stable_diffusions_size(parts: dict[str, Part]) -> None:
    assert parts["image_unet"].parameters == pytest.approx(859.5e6, rel=1e-4)
    assert parts["image_unet"].trained == 0


def test_the_brain_module_is_what_the_layers_imply(parts: dict[str, Part]) -> None:
    found = sum(part.parameters for name, part in parts.items() if name.startswith("brain."))
    # Subject layer, timestep layers, norm, aggregation, output. "About 400 M" in the paper's words: 345 M.
    implied = 15_724 * 1552 + 6 * (1552 * 1552 + 1552) + 2 * 1552 + (6 + 1) + (1552 + 1) * 257 * 768
    assert found == implied


def test_the_adapter_is_what_rank_and_widths_imply(parts: dict[str, Part]) -> None:
    # Cross-attentions of Stable Diffusion 1: two a block down, one in the middle, three a block up.
    widths = 5 * [320] + 5 * [640] + 5 * [1280] + [1280]
    # q and out are C x C, k and v are 768 x C; rank 4 adds 4 (in + out) to each.
    implied = sum(4 * (2 * (c + c) + 2 * (768 + c)) for c in widths)
    assert parts["adapter"].parameters == parts["adapter"].trained == implied


def test_nothing_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated = []
    empty = torch.empty

    def watched(*size: object, **options: object) -> torch.Tensor:
        made: torch.Tensor = empty(*size, **options)  # type: ignore[call-overload]
        allocated.append(0 if made.is_meta else made.numel())
        return made

    monkeypatch.setattr(torch, "empty", watched)
    describe(read_recipe(PAPER), [15_724])
    assert allocated
    assert max(allocated) < 1_000_000


def test_several_subjects_share_all_but_their_own_layers() -> None:
    one = {part.name: part.parameters for part in describe(read_recipe(PAPER), [15_724])}
    sizes = list(region_sizes([1, 2, 5, 7], None).values())
    four = {part.name: part.parameters for part in describe(read_recipe(PAPER), sizes)}
    assert four.pop("brain.subject") == 4 * one.pop("brain.subject")
    assert four == one


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "paper"]) == 0
    assert "859.521 M" in capsys.readouterr().out
    assert main(["describe", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["image_unet"]["trained"] == 0


def test_it_counts_what_a_training_would_count_and_says_for_which_region(
    tiny_nsd: Path, tiny_base: Path, tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = untrained_model(tiny_recipe, tiny_base, 100, seed=1)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(as_toml(msgspec.to_builtins(tiny_recipe)))
    assert main(["describe", str(recipe), "--nsd", str(tiny_nsd), "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert sum(part["trained"] for part in parts.values()) == trained
    assert main(["describe", str(recipe), "--nsd", str(tiny_nsd)]) == 0
    assert f"for 100 voxels of subject 1 ({tiny_nsd})" in capsys.readouterr().out
    assert main(["describe", str(recipe)]) == 0
    assert "for 15,724 voxels of subject 1 (NSD; --nsd counts" in capsys.readouterr().out


def test_a_subject_or_recipe_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TrainError, match="expected subjects of NSD, 1 to 8, got \\[9\\]"):
        region_sizes([9], None)
    assert main(["describe", "nothing"]) == 2
    shipped = "authors, demo, demo-weighted, experiments, paper, quick"
    assert f"shipped recipes are: {shipped}" in capsys.readouterr().err
