"""Several subjects in one model, and a new one: what is shared, what is their own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from nsd import Layout, RunKey, shared_images
from train.checkpoints.checkpoint import load_checkpoint, read_info, read_weights
from train.data.cache import prepare, subject_cache
from train.data.dataset import averaged_windows
from train.data.trials import held_out_images, training_trials
from train.errors import TrainError
from train.evaluation.evaluate import Evaluation, evaluate
from train.evaluation.held_out import decode_windows, held_out_groups, images_of
from train.fitting.fit import fit_subjects, untrained_model
from train.fitting.job import Order
from train.model.base_model import load_unet
from train.recipe import Recipe


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    brain = msgspec.structs.replace(tiny_recipe.brain, per_subject_timesteps=True)
    return msgspec.structs.replace(tiny_recipe, brain=brain)


@pytest.fixture(scope="module")
def order(
    recipe: Recipe, tiny_nsd_of_two: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Order:
    """Both subjects' model, fitted."""
    out = tmp_path_factory.mktemp("both") / "checkpoint"
    order = Order(root=tiny_nsd_of_two, subjects=[1, 2], recipe=recipe, base=tiny_base, out=out)
    fit_subjects(order)
    return order


def test_each_subject_decodes_with_layers_of_its_own(order: Order) -> None:
    first, second = (load_checkpoint(order.out, subject=number) for number in (1, 2))
    assert (first.subject.n_voxels, second.subject.n_voxels) == (100, 90)
    one, other = (each.brain.get_parameter("output.weight") for each in (first, second))
    torch.testing.assert_close(one, other)
    window = torch.randn(1, 90, 6)
    padded = torch.cat([window, torch.randn(1, 10, 6)], dim=1)
    subject = torch.zeros(1, dtype=torch.long)
    assert not torch.allclose(first.brain(padded, subject), second.brain(window, subject))
    for checkpoint in (first, second):
        assert (checkpoint.subject_folder / "roi.nii.gz").exists()
        assert (checkpoint.subject_folder / "prior.npz").exists()


def test_a_subject_must_be_named_and_known(order: Order, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"trained on \(1, 2\), got none"):
        load_checkpoint(order.out)
    with pytest.raises(TrainError, match=r"trained on \(1, 2\), got 5"):
        load_checkpoint(order.out, subject=5)
    evaluation = Evaluation(
        root=order.root, checkpoint=order.out, out=tmp_path, subject=2, n_trials=3, offsets=[2]
    )
    assert "from 2.7 s" in evaluate(evaluation)


def test_no_subject_trains_on_what_another_is_tested_on(order: Order) -> None:
    caches = [
        prepare(order.root, number, order.recipe, subject_cache(order.out / "cache", number))
        for number in order.subjects
    ]
    held_out = np.union1d(held_out_images(caches), shared_images(Layout(order.root)))
    for cache, subject in zip(caches, read_info(order.out).subjects, strict=True):
        assert cache.test_runs == [RunKey(*key) for key in subject.held_out_runs]
        assert subject.n_train_trials == len(training_trials(cache, held_out))


def test_a_new_subject_begins_with_the_others_weights(order: Order, tiny_base: Path) -> None:
    model = untrained_model(order.recipe, tiny_base, 100, seed=1, pretrained=order.out)
    weights, null = read_weights(order.out)
    torch.testing.assert_close(model.null.data, null)
    for name, value in model.brain.state_dict().items():
        if name.startswith(("subject.", "timestep.")):
            assert value.shape[0] == 1, name
            assert not torch.allclose(value, weights[name][:1]), f"{name} was taken over"
        else:
            torch.testing.assert_close(value, weights[name])
    theirs = dict(load_checkpoint(order.out, subject=1).unet.named_parameters())
    for name, parameter in model.unet.named_parameters():
        torch.testing.assert_close(parameter.data, theirs[name].data)
        assert parameter.requires_grad == (".lora_" in name)


def test_a_new_subject_is_fitted_from_a_checkpoint(order: Order, tmp_path: Path) -> None:
    new = msgspec.structs.replace(order.recipe, fit=msgspec.structs.replace(order.recipe.fit, steps=2))
    out = tmp_path / "new"
    fit_subjects(
        Order(
            root=order.root,
            subjects=[2],
            recipe=new,
            base=order.base,
            out=out,
            pretrained=order.out,
            n_sessions=1,
        )
    )
    checkpoint = load_checkpoint(out)
    cache = prepare(order.root, 2, new, subject_cache(out / "cache", 2))
    groups = held_out_groups(cache, new, [new.window], average=True, seed=1, n_groups=2)
    windows = averaged_windows(cache, groups, new.window, "causal", new)
    assert windows.shape == (2, 90, 6)
    assert decode_windows(checkpoint, windows, 1, "new").shape == (2, 64, 64, 3)
    assert len(np.unique(images_of(cache, groups))) == 2


def test_a_model_of_one_subject_is_no_start_where_it_saw_what_others_are_tested_on(
    order: Order, tiny_checkpoint: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    assert read_info(tiny_checkpoint).recipe.split == "time-resolved"
    alone = replace(order, subjects=[2], recipe=tiny_recipe, out=tmp_path / "new", pretrained=tiny_checkpoint)
    with pytest.raises(TrainError, match="not trained on pictures that the new subject is tested on"):
        fit_subjects(alone)


def test_a_folder_of_another_training_is_refused_and_left_alone(order: Order, tmp_path: Path) -> None:
    weights = (order.out / "brain.safetensors").read_bytes()
    window = msgspec.structs.replace(order.recipe.window, offset_volumes=2)
    causal_too = msgspec.structs.replace(order.recipe, window=window)
    moved = replace(order, recipe=causal_too, caches=tmp_path / "cache")
    with pytest.raises(TrainError, match="holds a training with other window"):
        fit_subjects(moved)
    assert (order.out / "brain.safetensors").read_bytes() == weights
    assert read_info(order.out).recipe == order.recipe
    steps = msgspec.structs.replace(order.recipe.fit, steps=5, warmup_steps=2)  # steps alone would extend it
    longer = msgspec.structs.replace(order.recipe, fit=steps)
    with pytest.raises(TrainError, match="holds a training with other fit, seed, sessions;"):
        fit_subjects(replace(order, recipe=longer, seed=2, n_sessions=1, caches=tmp_path / "seed-2"))
    assert (order.out / "brain.safetensors").read_bytes() == weights
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "checkpoint.json").write_text("{}")
    with pytest.raises(TrainError, match="holds a checkpoint of another training"):
        fit_subjects(replace(order, out=tmp_path / "imported", caches=order.cache_folder))
    assert (tmp_path / "imported" / "checkpoint.json").read_text() == "{}"


def test_a_training_goes_on_with_the_data_and_base_model_it_began_with(
    order: Order, tiny_base: Path, tmp_path: Path
) -> None:
    root, base, out = tmp_path / "nsd", tmp_path / "base", tmp_path / "out"
    for folder, copy in ((order.root, root), (Path(order.base), base), (order.out, out)):
        shutil.copytree(folder, copy)
    order = replace(order, root=root, base=base, out=out)
    fit_subjects(order)  # copies are the same
    unet = load_unet(base)
    unet.conv_in.bias.data += 1
    unet.save_pretrained(base / "image_unet")
    with pytest.raises(TrainError, match="holds a training with other base;"):
        fit_subjects(order)
    shutil.copytree(tiny_base, base, dirs_exist_ok=True)
    layout = Layout(root)
    shutil.copy(layout.timeseries(2, 1, 3), layout.timeseries(2, 1, 2))
    with pytest.raises(TrainError, match="holds a training with other data;"):
        fit_subjects(replace(order, caches=tmp_path / "cache"))


def test_what_a_training_began_with_is_told_and_held_to(order: Order, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(order.out, parent, ignore=shutil.ignore_patterns("cache", "training"))
    base = Path(order.base)
    said = json.loads((parent / "checkpoint.json").read_text())
    prior = not said["recipe"]["preprocessing"].get("drift_prior", False)  # it may differ
    said["recipe"]["preprocessing"]["drift_prior"] = prior
    (parent / "checkpoint.json").write_text(json.dumps(said | {"base": str(base)}))
    new = replace(
        order, subjects=[1], out=tmp_path / "new", pretrained=parent, n_sessions=1, caches=order.cache_folder
    )
    fit_subjects(new)
    info = read_info(new.out)
    assert info.n_sessions == 1
    assert info.parent is not None
    assert info.parent.subjects == [1, 2]
    assert (new.out / info.parent.folder).resolve() == parent.resolve()
    (parent / "checkpoint.json").write_text(json.dumps(said | {"base": str(base), "last_loss": 0.5}))
    with pytest.raises(TrainError, match="holds a training with other parent;"):
        fit_subjects(new)


def test_a_pretrained_model_of_another_make_is_refused(order: Order, tmp_path: Path) -> None:
    wider = msgspec.structs.replace(
        order.recipe, brain=msgspec.structs.replace(order.recipe.brain, hidden_width=32)
    )
    wrong = Order(
        root=order.root,
        subjects=[2],
        recipe=wider,
        base=order.base,
        out=tmp_path / "new",
        pretrained=order.out,
    )
    with pytest.raises(TrainError, match="expected that .* was trained with this recipe's brain"):
        fit_subjects(wrong)
    assert not (tmp_path / "new" / "checkpoint.json").exists()
    for section, change in (
        ("preprocessing", {"warmup_volumes": 7}),
        ("diffusion", {"null_condition": "zeros"}),
        ("base", {"condition_noise": 0.0}),
    ):
        changed = msgspec.structs.replace(getattr(order.recipe, section), **change)
        recipe = msgspec.structs.replace(order.recipe, **{section: changed})
        with pytest.raises(TrainError, match=f"trained with this recipe's {section}, found"):
            untrained_model(recipe, Path(order.base), 90, 1, pretrained=order.out)
    base = tmp_path / "base"
    shutil.copytree(order.base, base)
    unet = load_unet(base)
    unet.conv_in.bias.data += 1
    unet.save_pretrained(base / "image_unet")
    with pytest.raises(TrainError, match="was trained on the base model in .*, found another base model"):
        untrained_model(order.recipe, base, 90, 1, pretrained=order.out)
    none = Order(
        root=order.root, subjects=[2], recipe=order.recipe, base=order.base, out=tmp_path / "x", n_sessions=0
    )
    with pytest.raises(TrainError, match="expected presentations of subject 2 to train on"):
        fit_subjects(none)
