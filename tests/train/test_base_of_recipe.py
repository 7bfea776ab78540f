"""Which base model a recipe takes: found by name, from any folder, and only one that belongs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from nsd import NsdError
from train.__main__ import main
from train.checkpoints.checkpoint import load_checkpoint, read_info
from train.errors import TrainError
from train.fitting.fit import fit_subjects
from train.fitting.job import Order
from train.model.base_model import find_base, load_unet, load_vae, shipped_bases
from train.model.base_of_recipe import base_of_recipe, default_base, unseen_subject
from train.model.picture_encoder import load_picture_encoder
from train.recipe import Recipe, demo_base, read_recipe
from train.store.fingerprints import base_identity
from train.systems.brain_diffuser.fit import fit_baseline

QUICK = read_recipe(Path("quick"))


@pytest.mark.parametrize("name", shipped_bases())
def test_a_shipped_base_is_found_by_name_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = find_base(name)
    theirs = msgspec.convert(json.loads((folder / "base.json").read_bytes())["recipe"], Recipe)
    assert load_unet(folder).config.cross_attention_dim == theirs.base.token_width
    assert load_vae(folder).config.latent_channels == demo_base(theirs).latent_channels
    load_picture_encoder(folder, demo_base(theirs))


def test_a_folder_comes_before_a_shipped_base_of_its_name(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name, *_) = shipped_bases()
    shutil.copytree(tiny_base, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert find_base(name) == Path(name)


def test_a_recipe_takes_the_shipped_base_that_belongs_to_it() -> None:
    assert default_base(QUICK) == default_base(read_recipe(Path("experiments"))) == "plain"
    assert default_base(read_recipe(Path("paper"))) == "shi-labs/versatile-diffusion"
    with pytest.raises(TrainError, match=r"expected --base.*plain \(experiments, quick\)"):
        default_base(read_recipe(Path("demo")))


def test_of_several_that_fit_it_is_the_one_that_the_recipe_would_train(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(shipped_bases()["plain"], tmp_path / "other")
    shutil.copytree(shipped_bases()["plain"], tmp_path / "same")
    made = json.loads((tmp_path / "other" / "base.json").read_bytes())
    made["recipe"]["base"]["n_pictures"] += 1
    (tmp_path / "other" / "base.json").write_text(json.dumps(made))
    monkeypatch.setattr("train.model.base_model.BASES", tmp_path)
    assert default_base(QUICK) == "same"
    more = msgspec.structs.replace(QUICK.base, n_pictures=36_001)
    assert default_base(msgspec.structs.replace(QUICK, base=more)) == "other"
    neither = msgspec.structs.replace(QUICK.base, n_pictures=36_002)
    with pytest.raises(
        TrainError, match="expected --base, because several belong to this recipe: other, same"
    ):
        default_base(msgspec.structs.replace(QUICK, base=neither))


@pytest.mark.parametrize("train", [fit_subjects, fit_baseline])
def test_who_trains_for_a_subject_whose_pictures_the_base_has_seen_is_told(
    train: Callable[[Order], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(shipped_bases()["plain"], tmp_path / "earlier")
    made = json.loads((tmp_path / "earlier" / "base.json").read_bytes())
    assert made.pop("subject") == unseen_subject(shipped_bases()["plain"]) == 1
    (tmp_path / "earlier" / "base.json").write_text(json.dumps(made))
    for base, subject in (("plain", 1), (tmp_path / "earlier", 2), ("plain", 2)):
        assert "has seen no picture" not in caplog.text
        out = tmp_path / f"out-{subject}"
        with pytest.raises(NsdError):  # there are no recordings
            train(Order(root=tmp_path, subjects=[subject], recipe=QUICK, base=base, out=out))
    assert "has seen no picture of subject 1, but may have seen pictures that subject(s) 2" in caplog.text


def test_a_base_says_whose_pictures_it_has_not_seen(tiny_base: Path, tmp_path: Path) -> None:
    assert unseen_subject(tiny_base) == 1
    assert unseen_subject(tmp_path) is None
    for damaged in ("", "[]", '{"subject": "one"}'):
        (tmp_path / "base.json").write_text(damaged)
        assert unseen_subject(tmp_path) is None


@pytest.mark.parametrize("command", ["fit", "ridge"])
@pytest.mark.parametrize(("recipe", "size"), [("demo", "unet_widths"), ("paper", "token_width = 768")])
def test_a_base_that_does_not_belong_to_the_recipe_is_refused_with_the_recipes_that_do(
    command: str, recipe: str, size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = ["--nsd", str(tmp_path), "--subject", "1", "--out", str(tmp_path / "out"), "--recipe", recipe]
    assert main([command, *order, "--base", str(shipped_bases()["plain"])]) == 2
    told = capsys.readouterr().err
    assert f"expected a base model with the recipe's {size}" in told
    assert "Recipes that belong to it: experiments, quick." in told


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("missing", ["checkpoints/base", "here/base", "base", "../base", "/no/such/base"])
def test_a_folder_that_is_not_there_is_what_the_error_is_about(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainError, match="no such folder") as raised:
        base_of_recipe(QUICK, missing)
    assert "hub" not in str(raised.value)
    assert "plain" in str(raised.value)
    with pytest.raises(TrainError, match=f"expected a base model in {missing}, found no such folder"):
        find_base(missing)


@pytest.mark.usefixtures("offline")
def test_a_folder_of_the_owners_name_does_not_hide_the_hubs_model(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "shi-labs/versatile-diffusion"
    (tmp_path / "shi-labs" / "other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainError, match="cannot get it from the hub or its cache"):
        find_base(name)
    cached = tmp_path / "hub" / "models--shi-labs--versatile-diffusion"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    shutil.copytree(tiny_base, cached / "snapshots" / "abc")
    assert find_base(name) == cached / "snapshots" / "abc"
    shutil.copytree(tiny_base, name)
    assert find_base(name) == Path(name), "a folder of the whole name comes first"


@pytest.mark.slow
def test_a_checkpoint_names_its_shipped_base_and_finds_it_where_the_package_is(
    tiny_nsd: Path, tiny_base: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders of two installations stand for two machines."""
    for machine in ("one", "two"):
        shutil.copytree(tiny_base, tmp_path / machine / "tiny")
    monkeypatch.setattr("train.model.base_model.BASES", tmp_path / "one")
    out = tmp_path / "checkpoint"
    fit_subjects(Order(root=tiny_nsd, subjects=[1], recipe=tiny_recipe, base="tiny", out=out))
    assert read_info(out).base == "tiny"
    monkeypatch.setattr("train.model.base_model.BASES", tmp_path / "two")
    assert load_checkpoint(out).base_folder == tmp_path / "two" / "tiny"
    assert base_identity(tmp_path / "two" / "tiny") == read_info(out).base_identity
